//! The operator is asked to end while its API server answers some requests, or none. The API server is a few
//! answers on a loopback port.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods)]

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/gpudesk-system/leases/gpudesk-operator";
const KEY: &str = "/api/v1/namespaces/gpudesk-system/secrets/gpudesk-allocation-key";
const DESKTOPS: &str = "/apis/gpudesk.dev/v1alpha1/desktops";
/// For what comes by itself: renewals of the lease.
const SOON: Duration = Duration::from_mins(1);
/// A renewal of a lease of a minute alone would be waited for longer.
const END: Duration = Duration::from_secs(15);

/// An API server with one lease and, perhaps, a desktop.
struct Server {
    desktops: Vec<Value>,
    lease: Mutex<Value>,
    /// Whether it still answers.
    answers: AtomicBool,
    /// The requests that were left without an answer.
    left: Mutex<Vec<String>>,
}

impl Server {
    fn new(desktops: Vec<Value>) -> Arc<Self> {
        Arc::new(Self { desktops, lease: Mutex::default(), answers: true.into(), left: Mutex::default() })
    }

    fn left(&self, request: &str) -> bool {
        self.left.lock().unwrap().iter().any(|left| left.starts_with(request))
    }

    fn holder(&self) -> Value {
        self.lease.lock().unwrap()["spec"]["holderIdentity"].clone()
    }

    /// What the chart's policy says of a term: that of the lease may write, and no other.
    fn probed(lease: &Value, probe: &Bytes) -> Response {
        let probe: Value = serde_json::from_slice(probe).unwrap();
        let term = format!(":{}", lease["spec"]["leaseTransitions"]);
        if probe["metadata"]["annotations"]["gpudesk.dev/operator-term"] == term.as_str() {
            return ([("content-type", "application/json")], probe.to_string()).into_response();
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
            "reason": "Forbidden", "message": "ValidatingAdmissionPolicy 'operator-term.gpudesk.dev' denied request"});
        (StatusCode::FORBIDDEN, [("content-type", "application/json")], status.to_string()).into_response()
    }

    async fn answer(State(server): State<Arc<Self>>, method: Method, uri: Uri, body: Bytes) -> Response {
        if uri.query().is_some_and(|query| query.contains("watch=")) {
            return std::future::pending().await;
        }
        // Every write but that of the lease takes for ever.
        let of_lease = uri.path() == LEASE || method == Method::POST;
        if !server.answers.load(Relaxed) || (method != Method::GET && !of_lease) {
            server.left.lock().unwrap().push(format!("{method} {}", uri.path()));
            return std::future::pending().await;
        }
        let mut lease = server.lease.lock().unwrap();
        if uri.query().is_some_and(|query| query.contains("dryRun=")) {
            return Self::probed(&lease, &body);
        }
        if of_lease && method != Method::GET {
            *lease = serde_json::from_slice(&body).unwrap();
            lease["metadata"]["resourceVersion"] = json!("1");
        }
        let (code, answer) = match uri.path() {
            _ if of_lease && lease.is_null() => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                    "reason": "NotFound"});
                (StatusCode::NOT_FOUND, status)
            }
            _ if of_lease => (StatusCode::OK, lease.clone()),
            path if path.starts_with("/openapi/") => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403,
                    "reason": "Forbidden"});
                (StatusCode::FORBIDDEN, status)
            }
            KEY => {
                let data = json!({"key": format!("{}=", "A".repeat(43))});
                let metadata = json!({"name": "gpudesk-allocation-key"});
                (
                    StatusCode::OK,
                    json!({"kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data}),
                )
            }
            path => {
                let items = if path == DESKTOPS { json!(server.desktops) } else { json!([]) };
                let metadata = json!({"resourceVersion": "1"});
                (
                    StatusCode::OK,
                    json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}),
                )
            }
        };
        (code, [("content-type", "application/json")], answer.to_string()).into_response()
    }
}

/// The operator beside such a server; killed when dropped.
struct Operator {
    process: Child,
    _kubeconfig: tempfile::NamedTempFile,
}

impl Operator {
    async fn start(server: &Arc<Server>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(Server::answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "test", "user": {}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}]});
        std::fs::write(kubeconfig.path(), config.to_string()).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_gpudesk-operator"))
            .args(["--metrics-addr", "127.0.0.1:0", "--lease-seconds", "60"])
            .env("KUBECONFIG", kubeconfig.path())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let operator = Self { process, _kubeconfig: kubeconfig };
        operator.sees("it leads", || !server.holder().is_null()).await;
        operator
    }

    async fn sees(&self, what: &str, seen: impl Fn() -> bool) {
        let began = Instant::now();
        while !seen() {
            assert!(began.elapsed() < SOON, "not seen: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks it to end, and waits until it has, in order.
    async fn end(mut self) {
        let asked = Command::new("kill").arg(self.process.id().to_string()).status().unwrap();
        assert!(asked.success());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                break status;
            }
            assert!(began.elapsed() < END, "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        assert!(status.success(), "{status}");
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_lease_is_given_back_when_nothing_is_under_way() {
    let server = Server::new(vec![]);
    Operator::start(&server).await.end().await;
    assert_eq!(server.holder(), Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_lease_is_left_to_lapse_while_a_write_may_still_land() {
    let metadata =
        json!({"name": "a", "namespace": "demo", "uid": "u", "resourceVersion": "1", "generation": 1});
    let server = Server::new(vec![json!({"apiVersion": "gpudesk.dev/v1alpha1", "kind": "Desktop",
        "metadata": metadata, "spec": {"templateRef": {"name": "t"}}})]);
    let operator = Operator::start(&server).await;
    let write = "PATCH /apis/gpudesk.dev/v1alpha1/namespaces/demo/desktops/a";
    operator.sees("it writes", || server.left(write)).await;
    operator.end().await;
    assert!(server.holder().is_string(), "the next one would begin before that write has landed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn it_ends_while_the_api_server_takes_requests_and_answers_none() {
    let server = Server::new(vec![]);
    let operator = Operator::start(&server).await;
    server.answers.store(false, Relaxed);
    let renewal = format!("PUT {LEASE}");
    operator.sees("it renews the lease", || server.left(&renewal)).await;
    operator.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_that_stands_by_ends_while_the_api_server_answers_none() {
    let server = Server::new(vec![]);
    *server.lease.lock().unwrap() = json!({"metadata": {"name": "gpudesk-operator", "resourceVersion": "1"},
        "spec": {"holderIdentity": "another", "leaseDurationSeconds": 60}});
    let operator = Operator::start(&server).await;
    server.answers.store(false, Relaxed);
    operator.sees("it looks at the lease", || server.left("GET")).await;
    operator.end().await;
    assert_eq!(server.holder(), "another");
}
