//! The one way to the API server: an answer that never comes holds up no program for ever.

use std::time::Duration;

use http::Request;
use kube::{Client, Config, client::Body};

/// How long the API server may be silent in an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same in a watch, where nothing may happen for long: more than the 295 s after which kube begins a silent one
/// anew.
const WATCHING: Duration = Duration::from_mins(5);

/// A client of `config`. Where the host of the API server, or a load balancer on the way, goes away without a word, an
/// open connection looks as if an answer might still come. So a request fails once nothing came for 30 s; a watch, whose
/// list is a request like others, for five minutes, after which it is begun anew.
///
/// # Errors
/// As those of [`Client::try_from`].
pub fn client(config: &Config) -> kube::Result<Client> {
    let patient = |patience| {
        let mut config = config.clone();
        config.read_timeout = Some(patience);
        // It counts from the request, not from when its connection came to rest.
        config.reset_reader_on_write = true;
        Client::try_from(config)
    };
    let (asking, watching) = (patient(PATIENCE)?, patient(WATCHING)?);
    let (namespace, valid_until) = (config.default_namespace.clone(), *asking.valid_until());
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = if is_watch(&request) { watching.clone() } else { asking.clone() };
        async move { client.send(request).await }
    });
    Ok(Client::new(service, namespace).with_valid_until(valid_until))
}

fn is_watch(request: &Request<Body>) -> bool {
    request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::{Api, api::WatchParams};
    use tokio::{
        io::AsyncReadExt as _,
        net::TcpListener,
        time::{self, Instant},
    };

    use super::*;

    /// For how long an answer is waited for that never comes.
    async fn waited(watch: bool) -> Duration {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let client = client(&Config::new(server.parse().unwrap())).unwrap();
        let namespaces: Api<Namespace> = Api::all(client);
        let asking = async {
            if watch {
                namespaces.watch(&WatchParams::default(), "0").await.err().unwrap()
            } else {
                namespaces.get("a").await.unwrap_err()
            }
        };
        let silent = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            assert!(connection.read(&mut [0; 64]).await.unwrap() > 0);
            // From now on time flies.
            time::pause();
            time::sleep(Duration::from_hours(1)).await;
        };
        let began = Instant::now();
        tokio::select! {
            _ = asking => {}
            () = silent => {}
        }
        time::resume();
        began.elapsed()
    }

    #[tokio::test]
    async fn an_answer_that_never_comes_is_not_waited_for_for_ever() {
        let asked = waited(false).await;
        assert!((PATIENCE..2 * PATIENCE).contains(&asked), "{asked:?}");
        let watched = waited(true).await;
        assert!((WATCHING..2 * WATCHING).contains(&watched), "{watched:?}");
    }
}
