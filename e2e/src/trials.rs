//! Test programs with one shared environment, and the command line of `cargo test`.
//!
//! ```no_run
//! # use gpudesk_e2e::trials::Suite;
//! fn main() -> std::process::ExitCode {
//!     Suite::<()>::new("example").trial("one_is_one", |_| async { Ok(()) }).run()
//! }
//! ```

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::FutureExt;
use futures::future::BoxFuture;
use libtest_mimic::{Arguments, Failed, Trial};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::OnceCell;
use tracing_subscriber::EnvFilter;

/// Whether this is `make soak`: trials take their long forms, the same code with larger numbers.
pub fn soak() -> bool {
    std::env::var_os("GPUDESK_SOAK").is_some_and(|value| !value.is_empty())
}

/// A trial that has not ended after this has failed.
fn limit() -> Duration {
    Duration::from_mins(if soak() { 60 } else { 20 })
}

/// What the trials of one test program share.
pub trait Environment: Send + Sync + Sized + 'static {
    /// Brings it up. Called once, before the first trial that runs; never for `--list`.
    fn start() -> impl Future<Output = Result<Self>> + Send;

    /// Takes it down; nothing of it is left on return.
    fn stop(self) -> impl Future<Output = Result<()>> + Send;

    /// Saves what explains a failure, and says where.
    fn collect_logs(&self, suite: &str) -> Result<Option<PathBuf>>;
}

/// No environment: every trial brings its own.
impl Environment for () {
    async fn start() -> Result<Self> {
        Ok(())
    }

    async fn stop(self) -> Result<()> {
        Ok(())
    }

    fn collect_logs(&self, _suite: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

type Body<E> = Box<dyn FnOnce(Arc<E>) -> BoxFuture<'static, Result<()>> + Send>;

/// The trials of one test program.
pub struct Suite<E> {
    name: &'static str,
    trials: Vec<(&'static str, Body<E>)>,
}

/// The environment, or why it could not be brought up.
type Shared<E> = Arc<OnceCell<Result<Arc<E>, String>>>;

impl<E: Environment> Suite<E> {
    /// `name` is the test program's file name.
    pub fn new(name: &'static str) -> Self {
        Self { name, trials: Vec::new() }
    }

    /// Adds a trial. Trials run side by side unless `--test-threads=1` is given.
    #[must_use]
    pub fn trial<A>(mut self, name: &'static str, body: impl FnOnce(Arc<E>) -> A + Send + 'static) -> Self
    where
        A: Future<Output = Result<()>> + Send + 'static,
    {
        self.trials.push((name, Box::new(|environment| body(environment).boxed())));
        self
    }

    /// Runs the trials that the command line asks for.
    pub fn run(self) -> ExitCode {
        // The kube client reports each failed request as an error, also those made while a server starts.
        let filter = EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new("warn,kube_client::client::builder=off"));
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
        match self.try_run() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        }
    }

    fn try_run(self) -> Result<ExitCode> {
        let runtime = Runtime::new()?;
        let shared: Shared<E> = Arc::new(OnceCell::new());
        let trials = self.trials.into_iter().map(|(name, body)| {
            let (shared, handle) = (Arc::clone(&shared), runtime.handle().clone());
            Trial::test(name, move || run_trial(&handle, &shared, body))
        });
        let conclusion = libtest_mimic::run(&Arguments::from_args(), trials.collect());

        let mut failed = conclusion.has_failed();
        let environment = Arc::into_inner(shared).and_then(OnceCell::into_inner);
        if let Some(Ok(environment)) = environment {
            if failed && let Some(folder) = environment.collect_logs(self.name)? {
                eprintln!("logs: {}", folder.display());
            }
            let environment = Arc::into_inner(environment).context("a trial still holds the environment")?;
            if let Err(error) = runtime.block_on(environment.stop()) {
                eprintln!("taking the environment of {} down: {error:#}", self.name);
                failed = true;
            }
        }
        Ok(if failed { ExitCode::from(101) } else { ExitCode::SUCCESS })
    }
}

fn run_trial<E: Environment>(handle: &Handle, shared: &Shared<E>, body: Body<E>) -> Result<(), Failed> {
    let outcome = handle.block_on(async {
        let up = shared.get_or_init(|| async {
            E::start()
                .await
                .map(Arc::new)
                .map_err(|error| format!("the environment did not come up: {error:#}"))
        });
        let environment = up.await.as_ref().map_err(|words| anyhow!("{words}"))?;
        let trial = body(Arc::clone(environment));
        let limit = limit();
        tokio::time::timeout(limit, trial).await.with_context(|| format!("not ended after {limit:?}"))?
    });
    outcome.map_err(|error| Failed::from(format!("{error:#}")))
}
