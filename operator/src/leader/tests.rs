use std::sync::{Mutex, PoisonError};

use http::{Method, Request, Response};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tower::service_fn;

use super::*;

fn lease(holder: Option<&str>, version: &str) -> Lease {
    Lease {
        metadata: ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: holder.map(Into::into),
            lease_duration_seconds: Some(30),
            // Long past by the clock of whoever wrote it, which proves nothing.
            renew_time: Some(MicroTime(Timestamp::from_second(1).unwrap())),
            ..LeaseSpec::default()
        }),
    }
}

#[test]
fn a_lease_is_taken_only_when_we_saw_it_unchanged_for_its_duration() {
    let start = Instant::now();
    let after = |seconds| start + Duration::from_secs(seconds);
    let mut seen = None;
    assert!(!may_take(&lease(Some("other"), "1"), "me", &mut seen, start));
    assert!(!may_take(&lease(Some("other"), "1"), "me", &mut seen, after(30)));
    assert!(!may_take(&lease(Some("other"), "2"), "me", &mut seen, after(31)), "it was renewed");
    assert!(!may_take(&lease(Some("other"), "2"), "me", &mut seen, after(61)));
    assert!(may_take(&lease(Some("other"), "2"), "me", &mut seen, after(62)));
}

#[test]
fn a_lease_given_back_or_our_own_is_taken_at_once() {
    let now = Instant::now();
    assert!(may_take(&lease(None, "1"), "me", &mut None, now));
    assert!(may_take(&lease(Some(""), "1"), "me", &mut None, now));
    assert!(may_take(&lease(Some("me"), "1"), "me", &mut None, now));
}

/// An API server with one Lease.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    lease: Option<Value>,
    made: u32,
    version: u32,
    renewals: u32,
    /// Requests are not answered.
    hangs: bool,
    /// Requests are refused.
    forbids: bool,
    /// The terms that the policy takes, where there is one.
    takes: Option<Vec<String>>,
}

impl Server {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self) -> Api<Lease> {
        let server = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move {
                let method = request.method().clone();
                let bytes = request.into_body().collect_bytes().await?;
                if server.state().hangs {
                    std::future::pending::<()>().await;
                }
                let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
                let (code, answer) = server.state().answer(&method, body);
                let response =
                    Response::builder().status(code).body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, kube::Error>(response.unwrap())
            }
        });
        Api::namespaced(Client::new(service, "system"), "system")
    }
}

impl State {
    fn answer(&mut self, method: &Method, mut body: Value) -> (u16, Value) {
        let failure = |code: u16, message: &str| {
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": if code == 404 { "NotFound" } else { "" }, "message": message}),
            )
        };
        if self.forbids {
            return failure(403, "forbidden");
        }
        if body["metadata"]["name"] == TERM_PROBE {
            let term = body["metadata"]["annotations"][TERM_ANNOTATION].as_str().unwrap_or_default();
            let taken = self.takes.as_ref().is_none_or(|terms| terms.iter().any(|taken| taken == term));
            return if taken {
                (201, body)
            } else {
                failure(403, "ValidatingAdmissionPolicy 'operator-term.gpudesk.dev' denied")
            };
        }
        match (method, &self.lease) {
            (&Method::GET, Some(lease)) => (200, lease.clone()),
            (&Method::GET | &Method::PUT, None) => failure(404, "not found"),
            (&Method::POST, Some(_)) => failure(409, "exists"),
            (&Method::PUT, Some(lease))
                if lease["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"] =>
            {
                failure(409, "changed")
            }
            (&Method::PUT | &Method::POST, before) => {
                let uid = before.as_ref().map(|before| before["metadata"]["uid"].clone());
                if uid.is_none() {
                    self.made += 1;
                }
                body["metadata"]["uid"] = uid.unwrap_or_else(|| format!("u{}", self.made).into());
                self.version += 1;
                self.renewals += 1;
                body["metadata"]["resourceVersion"] = self.version.to_string().into();
                self.lease = Some(body.clone());
                (200, body)
            }
            _ => failure(405, "no such method"),
        }
    }
}

fn candidate(identity: &str) -> Candidate {
    Candidate { name: "l".into(), identity: identity.into(), duration: Duration::from_secs(30) }
}

async fn lead(server: &Server, identity: &str) -> (Taken, Leadership) {
    candidate(identity).acquire(&server.api(), &CancellationToken::new(), |_| {}).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_read_for_its_duration_is_said_until_it_can() {
    let server = Server::default();
    server.state().forbids = true;
    let told: Mutex<Vec<Option<String>>> = Mutex::default();
    let (candidate, api, stop) = (candidate("me"), server.api(), CancellationToken::new());
    let acquiring = candidate.acquire(&api, &stop, |why| told.lock().unwrap().push(why));
    let allowing = async {
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(told.lock().unwrap().is_empty(), "it may be over soon");
        tokio::time::sleep(Duration::from_secs(10)).await;
        server.state().forbids = false;
    };
    let (acquired, ()) = tokio::join!(acquiring, allowing);
    assert!(acquired.is_some());
    let told = told.into_inner().unwrap();
    let first = told.first().and_then(Option::as_deref).unwrap_or_default();
    assert!(first.contains("can be neither read nor taken") && first.contains("forbidden"), "{told:?}");
    assert_eq!(told.last(), Some(&None), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn the_term_is_another_each_time_the_lease_is_taken_and_a_renewal_keeps_it() {
    let server = Server::default();
    let (mut taken, first) = lead(&server, "me").await;
    assert_eq!(&*first.term, "u1:1");
    candidate("me").renew(&server.api(), &mut taken).await.unwrap();
    assert_eq!(term(&taken.lease, 0), "u1:1");
    let (taken, second) = lead(&server, "me").await;
    assert_eq!(&*second.term, "u1:2", "the same identity, after it had ended");
    candidate("me").release(&server.api(), taken.lease).await;
    let (_, third) = lead(&server, "other").await;
    assert_eq!(&*third.term, "u1:3", "given back and taken");
    server.state().lease = None;
    let (taken, fourth) = lead(&server, "other").await;
    assert_eq!(&*fourth.term, "u2:1", "made anew");
    // What tells the policy that whoever holds it now writes terms.
    assert_eq!(taken.lease.metadata.annotations.unwrap()[TERM_ANNOTATION], "1");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_not_answered_ends_two_thirds_of_the_duration_after_its_last_renewal() {
    let server = Server::default();
    let (taken, leadership) = lead(&server, "me").await;
    let start = Instant::now();
    assert_eq!(*leadership.deadline.borrow() - start, Duration::from_secs(20));
    let hang = async {
        tokio::time::sleep(Duration::from_secs(25)).await;
        server.state().hangs = true;
        std::future::pending::<()>().await;
    };
    let (me, api, stop) = (candidate("me"), server.api(), CancellationToken::new());
    let lost = tokio::select! {
        lost = me.keep(&api, taken, &stop) => lost,
        () = hang => unreachable!(),
    };
    assert!(matches!(lost, Err(Lost::NotRenewed(_))), "{lost:?}");
    // Renewed last after 20 s.
    assert_eq!(start.elapsed().as_secs(), 40);
    assert_eq!(*leadership.deadline.borrow(), start + Duration::from_secs(40));
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_lease_was_deleted_or_made_anew_ends_at_its_next_renewal() {
    for anew in [false, true] {
        let server = Server::default();
        let (taken, _) = lead(&server, "me").await;
        server.state().lease = None;
        if anew {
            lead(&server, "other").await;
        }
        let start = Instant::now();
        let lost = candidate("me").keep(&server.api(), taken, &CancellationToken::new()).await;
        let as_it_is = if anew {
            matches!(&lost, Err(Lost::Taken(by)) if by == "other")
        } else {
            matches!(lost, Err(Lost::Deleted))
        };
        assert!(as_it_is, "{lost:?}");
        assert_eq!(start.elapsed().as_secs(), 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_api_server_was_restored_from_a_backup_ends() {
    let server = Server::default();
    let (mut taken, _) = lead(&server, "me").await;
    let backup = server.state().lease.clone();
    let version = server.state().version;
    let me = candidate("me");
    for _ in 0..2 {
        me.renew(&server.api(), &mut taken).await.unwrap();
    }
    server.state().lease = backup;
    server.state().version = version;
    let lost = me.renew(&server.api(), &mut taken).await.unwrap_err();
    let words = matches!(&lost, Some(Lost::Restored { before, now }) if before == "3" && now == "1");
    assert!(words, "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn nor_does_one_lead_on_where_the_restore_moved_versions_on() {
    let server = Server::default();
    let (mut taken, _) = lead(&server, "me").await;
    let backup = server.state().lease.clone();
    let me = candidate("me");
    for _ in 0..2 {
        me.renew(&server.api(), &mut taken).await.unwrap();
    }
    let mut old = backup.unwrap();
    old["metadata"]["resourceVersion"] = "1000000000".into();
    server.state().lease = Some(old);
    server.state().version = 1_000_000_000;
    let lost = me.renew(&server.api(), &mut taken).await.unwrap_err();
    assert!(matches!(&lost, Some(Lost::Restored { now, .. }) if now == "1000000000"), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_doubted_asks_its_lease_and_leads_on_or_ends() {
    let server = Server::default();
    let (taken, leadership) = lead(&server, "me").await;
    let stop = CancellationToken::new();
    let api = server.api();
    let me = candidate("me");
    let keep = me.keep(&api, taken, &stop);
    tokio::pin!(keep);
    leadership.doubted.send_replace(true);
    let wait = tokio::time::timeout(Duration::from_secs(2), &mut keep).await;
    assert!(wait.is_err(), "{wait:?}");
    assert_eq!(server.state().renewals, 2, "long before a third of the duration");
    // Taken by another of the same name: it is the term that counts.
    lead(&server, "me").await;
    leadership.doubted.send_replace(true);
    let lost = tokio::time::timeout(Duration::from_secs(2), keep).await.unwrap();
    assert!(matches!(lost, Err(Lost::Taken(_))), "{lost:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_refused_though_it_renews_its_lease_says_so_until_it_is_taken_again() {
    let server = Server::default();
    let (taken, leadership) = lead(&server, "me").await;
    let writes = async {
        let mut stale = Vec::new();
        for refused in [true, true, true, true, true, false] {
            leadership.doubted.send_replace(refused);
            tokio::time::sleep(Duration::from_secs(9)).await;
            stale.push(*leadership.stale.borrow());
        }
        stale
    };
    let (stop, api, me) = (CancellationToken::new(), server.api(), candidate("me"));
    let stale = tokio::select! {
        lost = me.keep(&api, taken, &stop) => panic!("{lost:?}"),
        stale = writes => stale,
    };
    assert_eq!(stale, [false, false, false, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_waits_until_the_term_before_is_refused_and_its_own_taken() {
    let server = Server::default();
    let (_, leadership) = lead(&server, "me").await;
    let connect = || Some(server.api());
    let begun = Instant::now();
    // A server that has not heard of the change, then one that has.
    server.state().takes = Some(vec!["u1:0".into()]);
    let catch_up = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.state().takes = Some(vec!["u1:1".into()]);
    };
    let me = candidate("me");
    let (fenced, ()) = tokio::join!(me.fenced(connect, &leadership), catch_up);
    assert!(fenced && (3..5).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    // A server that never looks at Leases again: nothing is begun, and it is said, until it looks again.
    server.state().takes = Some(vec!["u1:0".into()]);
    let begun = Instant::now();
    let started_again = async {
        tokio::time::sleep(Duration::from_secs(29)).await;
        assert!(!*leadership.stale.borrow(), "it may hear of the change yet");
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(*leadership.stale.borrow());
        server.state().takes = Some(vec!["u1:1".into()]);
    };
    let (fenced, ()) = tokio::join!(me.fenced(connect, &leadership), started_again);
    assert!(fenced && (89..91).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(!*leadership.stale.borrow());
    // Without the policy everything is taken: it waits for as long as one lease lasts.
    server.state().takes = None;
    let begun = Instant::now();
    assert!(!me.fenced(connect, &leadership).await);
    assert_eq!(begun.elapsed().as_secs(), 30);
}
