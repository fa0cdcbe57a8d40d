//! Waiting for a condition, never for a time.

use std::fmt::Debug;
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{Stream, StreamExt, TryStreamExt};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, timeout};

/// A time that something may take, on this machine: `GPUDESK_PATIENCE` says how many times as long as elsewhere.
pub fn patient(limit: Duration) -> Duration {
    static TIMES: LazyLock<u32> = LazyLock::new(|| {
        let set = std::env::var("GPUDESK_PATIENCE").ok();
        set.and_then(|value| value.parse().ok()).map_or(1, |times: u32| times.max(1))
    });
    limit * *TIMES
}

/// Asks until `condition` gives a value.
///
/// # Errors
/// What `condition` fails with, at once; or `what` when it gave no value within `limit`.
pub async fn eventually<T, F, A>(what: &str, limit: Duration, mut condition: F) -> Result<T>
where
    F: FnMut() -> A,
    A: Future<Output = Result<Option<T>>>,
{
    let (start, limit) = (Instant::now(), patient(limit));
    let mut pause = Duration::from_millis(5);
    loop {
        if let Some(value) = condition().await? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("not within {limit:?}: {what}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Watches one object until `condition` holds, and returns it as it was then.
///
/// # Errors
/// When the condition did not hold within `limit`; the message ends with the object as it was
/// last seen. Trouble with the watch itself is retried.
pub async fn until<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    limit: Duration,
    condition: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + serde::Serialize + Send + 'static,
{
    let limit = patient(limit);
    let mut last = None;
    let found = timeout(limit, async {
        let mut seen = pin!(objects(api, name));
        while let Some(object) = seen.next().await {
            if condition(&object) {
                return Some(object);
            }
            last = Some(object);
        }
        None
    })
    .await;
    if let Ok(Some(object)) = found {
        return Ok(object);
    }
    let state = match last {
        Some(mut object) => {
            object.managed_fields_mut().clear();
            serde_json::to_string_pretty(&object)?
        }
        None => "it was never seen".to_owned(),
    };
    bail!("not within {limit:?}: {name}: {what}; last seen: {state}")
}

/// Watches until no object of this name exists.
pub async fn until_gone<K>(api: &Api<K>, name: &str, limit: Duration) -> Result<()>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    eventually(&format!("{name} is gone"), limit, || async {
        let object = api.get_metadata_opt(name).await.with_context(|| format!("get {name}"))?;
        Ok(object.is_none().then_some(()))
    })
    .await
}

fn objects<K>(api: &Api<K>, name: &str) -> impl Stream<Item = K>
where
    K: kube::Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watcher(api.clone(), only)
        .default_backoff()
        .applied_objects()
        .inspect_err(|error| tracing::debug!("watch: {error}"))
        .filter_map(|event| async { event.ok() })
}
