//! The templates that desktops of this node name. Any tenant may make thousands of others: those pass by in the
//! watch, and nothing is kept of them.
//!
//! ```text
//!   watch of all templates ─▶ named by a desktop here? ─▶ kept ─▶ rounds
//!   a desktop that has just come here, or had been here ─▶ read from the API, once ──┘
//! ```

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use gpudesk_crds::{Desktop, DesktopTemplate};
use gpudesk_watch::understood::Read;
use kube::{Api, Client, ResourceExt, runtime::watcher::Event};
use thiserror::Error;
use uuid::Uuid;

/// How long the API server has for a read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Namespace and name of a template.
type Key = (String, String);

/// Why a template cannot be told.
#[derive(Debug, Error)]
pub enum TemplateError {
    /// The API server refused.
    #[error("asking for template {name:?} in namespace {namespace:?}: {source}")]
    Api {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// What it said.
        source: kube::Error,
    },
    /// It said nothing.
    #[error("asking for template {name:?} in namespace {namespace:?}: the API server does not answer")]
    Silent {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
}

/// The templates. Cheap to clone.
#[derive(Clone)]
pub struct Templates {
    client: Client,
    known: Arc<Mutex<Known>>,
    /// Held while one is read: many desktops that come at once name the same.
    reading: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct Known {
    kept: HashMap<Key, Arc<DesktopTemplate>>,
    /// What each desktop of this node names.
    named: HashMap<Uuid, Key>,
    /// Those of the list that is being read.
    listed: HashSet<Key>,
}

impl Known {
    fn is_named(&self, key: &Key) -> bool {
        self.named.values().any(|named| named == key)
    }

    fn put(&mut self, template: DesktopTemplate) {
        let key = key_of(&template);
        if self.is_named(&key) {
            self.listed.insert(key.clone());
            self.kept.insert(key, Arc::new(template));
        }
    }
}

fn key_of(object: &impl ResourceExt) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

impl Templates {
    /// None yet.
    pub fn new(client: Client) -> Self {
        Self { client, known: Arc::default(), reading: Arc::default() }
    }

    /// A desktop of this node names a template.
    pub fn name(&self, uid: Uuid, desktop: &Desktop) {
        let key = (desktop.namespace().unwrap_or_default(), desktop.spec.template_ref.name.clone());
        let mut known = self.lock();
        let before = known.named.insert(uid, key);
        if let Some(before) = before.filter(|before| !known.is_named(before)) {
            known.kept.remove(&before);
        }
    }

    /// These desktops are not this node's any more.
    pub fn forget(&self, desktops: &[Uuid]) {
        let mut known = self.lock();
        for uid in desktops {
            if let Some(key) = known.named.remove(uid).filter(|key| !known.is_named(key)) {
                known.kept.remove(&key);
            }
        }
    }

    /// Takes in an event of the watch.
    pub fn hear(&self, event: Event<DesktopTemplate>) {
        let mut known = self.lock();
        match event {
            Event::Apply(template) | Event::InitApply(template) => known.put(template),
            Event::Delete(template) => _ = known.kept.remove(&key_of(&template)),
            Event::Init => known.listed.clear(),
            // Some may have gone while nobody watched. One that is wanted is read anew.
            Event::InitDone => {
                let listed = std::mem::take(&mut known.listed);
                known.kept.retain(|key, _| listed.contains(key));
            }
        }
    }

    /// The template of this name, from the API where it is not kept; `None` where there is none, or where it is not
    /// understood.
    ///
    /// # Errors
    /// When that cannot be told; that is not "none".
    pub async fn get(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<DesktopTemplate>>, TemplateError> {
        let key = (namespace.to_owned(), name.to_owned());
        let kept = || self.lock().kept.get(&key).map(Arc::clone);
        if let Some(kept) = kept() {
            return Ok(Some(kept));
        }
        let templates: Api<Read<DesktopTemplate>> = Api::namespaced(self.client.clone(), namespace);
        let (namespace, name) = key.clone();
        // With the wait for others that ask: an API that hangs holds nobody up for longer than for one.
        let asking = async {
            let _reading = self.reading.lock().await;
            match kept() {
                Some(kept) => Ok(Err(kept)),
                None => templates.get_opt(&name).await.map(Ok),
            }
        };
        let answer = match tokio::time::timeout(PATIENCE, asking).await {
            Ok(Ok(Ok(answer))) => answer,
            Ok(Ok(Err(kept))) => return Ok(Some(kept)),
            Ok(Err(source)) => return Err(TemplateError::Api { namespace, name, source }),
            Err(_) => return Err(TemplateError::Silent { namespace, name }),
        };
        let Some(Read::Whole(template)) = answer else { return Ok(None) };
        let template = Arc::new(template);
        let mut known = self.lock();
        if !known.is_named(&key) {
            return Ok(Some(template));
        }
        // What the watch brought meanwhile is newer.
        let kept = known.kept.entry(key.clone()).or_insert(template);
        let kept = Arc::clone(kept);
        known.listed.insert(key);
        Ok(Some(kept))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use kube::client::Body;

    use super::*;

    fn template(name: &str, generation: i64) -> DesktopTemplate {
        let text = format!(
            "{{apiVersion: gpudesk.dev/v1alpha1, kind: DesktopTemplate, spec: {{memory: {{sizeMiB: 64}}}}, \
             metadata: {{name: {name}, namespace: school, generation: {generation}}}}}"
        );
        serde_yaml::from_str(&text).unwrap()
    }

    fn desktop(template: &str) -> Desktop {
        let text = format!(
            "{{apiVersion: gpudesk.dev/v1alpha1, kind: Desktop, spec: {{templateRef: {{name: {template}}}}}, \
             metadata: {{name: anna, namespace: school}}}}"
        );
        serde_yaml::from_str(&text).unwrap()
    }

    /// An API that has these, and counts what it is asked.
    fn api(have: Vec<DesktopTemplate>) -> (Templates, Arc<Mutex<usize>>) {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let asked = Arc::<Mutex<usize>>::default();
        let counted = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Some((request, respond)) = handle.next_request().await {
                *counted.lock().unwrap() += 1;
                let name = request.uri().path().rsplit('/').next().unwrap().to_owned();
                let found = have.iter().find(|template| template.name_any() == name);
                let answer = match found {
                    Some(template) => (200, serde_json::to_vec(template).unwrap()),
                    None if name == "down" => {
                        (500, br#"{"kind":"Status","code":500,"message":"x","reason":"x"}"#.to_vec())
                    }
                    None => {
                        (404, br#"{"kind":"Status","code":404,"message":"x","reason":"NotFound"}"#.to_vec())
                    }
                };
                respond
                    .send_response(Response::builder().status(answer.0).body(Body::from(answer.1)).unwrap());
            }
        });
        (Templates::new(Client::new(service, "school")), asked)
    }

    fn kept(templates: &Templates) -> usize {
        templates.lock().kept.len()
    }

    #[tokio::test]
    async fn of_thousands_of_templates_those_are_kept_that_desktops_here_name() {
        let (templates, asked) = api(vec![]);
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        templates.name(first, &desktop("t-7"));
        templates.name(second, &desktop("t-7"));
        let list = |generation| {
            templates.hear(Event::Init);
            for n in 0..5000 {
                templates.hear(Event::InitApply(template(&format!("t-{n}"), generation)));
            }
            templates.hear(Event::InitDone);
        };
        list(1);
        for n in 5000..6000 {
            templates.hear(Event::Apply(template(&format!("t-{n}"), 1)));
        }
        assert_eq!(kept(&templates), 1);
        templates.hear(Event::Apply(template("t-7", 2)));
        list(3);
        let found = templates.get("school", "t-7").await.unwrap().unwrap();
        assert_eq!((found.metadata.generation, *asked.lock().unwrap()), (Some(3), 0), "kept as it is now");
        // One that another desktop names still stays; one that none names goes.
        templates.forget(&[first]);
        assert_eq!(kept(&templates), 1);
        templates.name(second, &desktop("t-8"));
        assert_eq!(kept(&templates), 0);
        templates.name(second, &desktop("t-7"));
        templates.hear(Event::Apply(template("t-7", 4)));
        templates.hear(Event::Delete(template("t-7", 4)));
        assert_eq!(kept(&templates), 0);
        // It went while nobody watched.
        templates.hear(Event::Apply(template("t-7", 5)));
        templates.hear(Event::Init);
        templates.hear(Event::InitDone);
        assert_eq!(kept(&templates), 0);
    }

    #[tokio::test]
    async fn one_that_is_not_kept_is_read_once_and_what_cannot_be_read_is_not_none() {
        let (templates, asked) = api(vec![template("t", 1)]);
        let get = async |name: &str| templates.get("school", name).await;
        assert!(get("t").await.unwrap().is_some());
        assert_eq!(kept(&templates), 0, "no desktop here names it");
        templates.name(Uuid::from_u128(1), &desktop("t"));
        for _ in 0..3 {
            assert!(get("t").await.unwrap().is_some());
        }
        assert_eq!((kept(&templates), *asked.lock().unwrap()), (1, 2));
        assert!(get("none").await.unwrap().is_none());
        assert!(get("down").await.is_err());
        templates.forget(&[Uuid::from_u128(1)]);
        assert_eq!(kept(&templates), 0);
    }
}
