//! Requests that end, answered or not, when their sender may lead no longer.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use thiserror::Error;
use tokio::{sync::watch, time::Instant};
use tower::{BoxError, Layer, Service};

/// Ends each request at the deadline that is in force then: a renewal that comes while a request waits
/// gives it more time.
#[derive(Clone, Debug)]
pub struct DeadlineLayer(pub watch::Receiver<Instant>);

/// A service whose requests end at a deadline.
#[derive(Clone, Debug)]
pub struct Deadline<S> {
    inner: S,
    deadline: watch::Receiver<Instant>,
}

/// The deadline passed.
#[derive(Debug, Error)]
#[error("the leader lease was not renewed: no answer is awaited")]
pub struct Passed;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner, deadline: self.0.clone() }
    }
}

impl<S, R> Service<R> for Deadline<S>
where
    S: Service<R, Error: Into<BoxError>, Future: Send + 'static>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // A request is not begun that would be ended at once.
        if *self.deadline.borrow() <= Instant::now() {
            return Box::pin(async { Err(Passed.into()) });
        }
        let (passed, answer) = (passed(self.deadline.clone()), self.inner.call(request));
        Box::pin(async move {
            tokio::select! {
                () = passed => Err(Passed.into()),
                answer = answer => answer.map_err(Into::into),
            }
        })
    }
}

async fn passed(mut deadline: watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            // Without a sender nobody renews, and the last word stands.
            Ok(()) = deadline.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tower::{ServiceBuilder, ServiceExt};

    use super::*;

    async fn ask(deadline: watch::Receiver<Instant>, takes: Duration) -> Result<(), BoxError> {
        let service = ServiceBuilder::new().layer(DeadlineLayer(deadline)).service_fn(move |()| async move {
            tokio::time::sleep(takes).await;
            Ok::<_, Infallible>(())
        });
        service.oneshot(()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_ends_at_the_deadline_and_none_begins_after_it() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let (deadline, followed) = watch::channel(start + 20 * second);
        ask(followed.clone(), 19 * second).await.unwrap();
        // A renewal while it is under way gives it more time.
        let renewal = async {
            tokio::time::sleep(second / 2).await;
            deadline.send_replace(start + 40 * second);
        };
        let (late, ()) = tokio::join!(ask(followed.clone(), 60 * second), renewal);
        assert!(late.unwrap_err().is::<Passed>());
        assert_eq!(start.elapsed().as_secs(), 40);
        assert!(ask(followed, Duration::ZERO).await.unwrap_err().is::<Passed>());
    }
}
