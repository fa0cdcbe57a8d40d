//! Calls into file systems, on threads that may be left behind.
//!
//! A file system that hangs (a dead NFS server) holds the thread that asked it, for ever. So each call
//! has a thread of its own, not one of the runtime's, and is waited for so long; a desktop whose call is
//! late starts no other before that one came back. What hangs delays its own desktop alone.

use std::{
    collections::HashSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use thiserror::Error;
use tokio::sync::oneshot::{self, error::TryRecvError};
use uuid::Uuid;

/// The longest wait for one call. A disk that is only busy answers sooner.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a call gave nothing.
#[derive(Debug, Error)]
pub enum ThreadError {
    /// It has not come back.
    #[error("the file system does not answer; it is asked again when it has answered")]
    Late,
    /// There was no thread for it, or it failed in this program.
    #[error("a file call could not be made: {0}")]
    Failed(#[from] io::Error),
}

/// The calls of all desktops.
#[derive(Clone, Debug)]
pub struct FileThreads {
    patience: Duration,
    /// Desktops with a call that nobody waits for any more.
    late: Arc<Mutex<HashSet<Uuid>>>,
}

impl Default for FileThreads {
    fn default() -> Self {
        Self { patience: PATIENCE, late: Arc::default() }
    }
}

impl FileThreads {
    /// Makes `call` for `desktop`.
    ///
    /// # Errors
    /// [`ThreadError::Late`] after 20 s, and at once while an earlier call of the desktop is late.
    pub async fn run<T: Send + 'static>(
        &self,
        desktop: Uuid,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ThreadError> {
        if self.late().contains(&desktop) {
            return Err(ThreadError::Late);
        }
        let (sender, mut receiver) = oneshot::channel();
        let threads = self.clone();
        thread::Builder::new().name("files".into()).spawn(move || {
            let answer = catch_unwind(AssertUnwindSafe(call));
            // Answer and mark change together: whoever gives up sees either.
            let mut late = threads.late();
            late.remove(&desktop);
            let _ = sender.send(answer);
        })?;
        let panicked = |_| ThreadError::Failed(io::Error::other("it failed in this program"));
        let waited = tokio::time::timeout(self.patience, &mut receiver).await;
        if let Ok(Ok(answer)) = waited {
            return answer.map_err(panicked);
        }
        let mut late = self.late();
        match receiver.try_recv() {
            Ok(answer) => answer.map_err(panicked),
            Err(TryRecvError::Empty) => {
                late.insert(desktop);
                Err(ThreadError::Late)
            }
            Err(TryRecvError::Closed) => Err(io::Error::other("its thread ended without an answer").into()),
        }
    }

    fn late(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    #[tokio::test]
    async fn what_hangs_delays_its_own_desktop_alone_until_it_answers() {
        let impatient = FileThreads { patience: Duration::ZERO, ..FileThreads::default() };
        let patient = FileThreads { late: Arc::clone(&impatient.late), ..FileThreads::default() };
        let (answer, hangs) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel::<()>();
        let hung = impatient.run(A, move || {
            let _ = hangs.recv();
            drop(ended);
        });
        assert!(matches!(hung.await, Err(ThreadError::Late)));
        // Another call of the same desktop is not even begun.
        assert!(matches!(patient.run(A, || panic!("begun")).await, Err(ThreadError::Late)));
        assert_eq!(patient.run(B, || 7).await.unwrap(), 7);
        answer.send(()).unwrap();
        let _ = end.recv();
        while patient.late().contains(&A) {
            tokio::task::yield_now().await;
        }
        assert_eq!(patient.run(A, || 8).await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_call_that_panics_is_an_error_and_nothing_stays_marked() {
        let threads = FileThreads::default();
        let panicking = threads.run(A, || panic!("a fault of this program"));
        assert!(matches!(panicking.await, Err(ThreadError::Failed(_))));
        assert_eq!(threads.run(A, || 1).await.unwrap(), 1);
    }
}
