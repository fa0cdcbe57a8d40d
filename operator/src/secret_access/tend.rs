//! Brings one pair after the other to what it should be, whatever became of it.

use std::sync::Arc;

use futures::{Stream, StreamExt};
use kube::runtime::reflector::ObjectRef;

use super::{Event, Pair, SecretAccess, owner_reference};
use crate::{backoff::Backoff, world::World};

/// Pairs that are worked on at the same time.
const CONCURRENCY: usize = 8;

/// Works off the queue until it ends.
pub async fn tend(access: Arc<SecretAccess>, world: Arc<World>, queue: impl Stream<Item = Event>) {
    let backoff = Arc::new(Backoff::<Pair>::default());
    queue.for_each_concurrent(CONCURRENCY, |event| look(&access, &world, &backoff, event)).await;
}

async fn look(access: &Arc<SecretAccess>, world: &World, backoff: &Arc<Backoff<Pair>>, event: Event) {
    let pair = event.pair().clone();
    let shared = match &event {
        // Who leaves nothing behind costs nothing.
        Event::Desktops(_) => match access.pairs().get(&pair).cloned() {
            Some(known) => known,
            None => return,
        },
        Event::Object(_, _, _) => access.pair(&pair),
    };
    let mut granted = shared.lock().await;
    match event {
        Event::Desktops(_) => {}
        Event::Object(_, kind, version) if *granted.version(kind) == version => {
            drop(granted);
            return access.forget_nothing(&pair, &shared);
        }
        // Looked at once what else the watches have to say of the pair is known.
        Event::Object(_, kind, version) => {
            *granted.version(kind) = version;
            granted.names = None;
            return access.notice(Event::Desktops(pair));
        }
    }
    let node = world.stores.nodes.get(&ObjectRef::new(&pair.node));
    let owner = node.and_then(|node| owner_reference(&node));
    let wanted = world.secrets(&pair.namespace, &pair.node);
    let result = access.bring(&pair, owner, wanted, &mut granted).await;
    match result {
        Ok(()) => backoff.reset(&pair),
        Err(error) => {
            let wait = backoff.failed(pair.clone());
            tracing::warn!(namespace = %pair.namespace, node = %pair.node, %error, "which Secrets the node may read is not as it should be; trying again");
            if !std::mem::replace(&mut granted.retrying, true) {
                let (access, pair) = (access.clone(), pair.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(wait).await;
                    access.pair(&pair).lock().await.retrying = false;
                    // A receiver that is gone means that the process ends.
                    let _ = access.queue.unbounded_send(Event::Desktops(pair));
                });
            }
        }
    }
    drop(granted);
    access.forget_nothing(&pair, &shared);
}
