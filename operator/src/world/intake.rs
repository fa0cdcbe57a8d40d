//! What the watches show, taken in: the snapshot and the indexes follow, and who is concerned is woken.
#![expect(clippy::disallowed_methods, reason = "an adapter: it tells the time to pure parts")]

use super::{
    Allocation, AllocationId, Arc, Cluster, Desktop, DesktopKey, DesktopTemplate, Duration, GpuNode,
    GpuProfile, Instant, Lease, NODE_LOST_AFTER, ObjectRef, Refusal, ResourceExt, Seen, World, is_new,
    key_of, node_held, odd, understood,
};
use crate::{
    desktop::{admit, now},
    node_liveness::Unproven,
};

/// How often is looked for what is remembered of desktops that are gone.
const FORGET_EVERY: Duration = Duration::from_mins(30);

impl World {
    /// A desktop came in.
    pub fn desktop(&self, seen: Seen<'_, Desktop>) {
        let mut cluster = self.lock();
        match seen {
            Seen::There(desktop) => {
                if cluster.index.seen(desktop) {
                    let namespace = desktop.namespace().unwrap_or_default();
                    cluster.templates.insert(DesktopKey::new(&namespace, &desktop.spec.template_ref.name));
                    self.counted.notify_one();
                }
                let key = key_of(desktop);
                let before = node_held(&cluster, &key);
                self.take_in(&mut cluster, &key, desktop);
                // Saying why it waits makes another version of it, and costs it no turn.
                let stored = self.stores.desktops.get(&ObjectRef::from_obj(desktop));
                let ask = cluster.queue.ask(&key).zip(stored).and_then(|(ask, now)| ask.of_version(now));
                if let Some(ask) = ask {
                    cluster.queue.ask_anew(&key, Arc::new(ask));
                }
                self.access_of(&key.namespace, [before, node_held(&cluster, &key)]);
                self.wake(&key);
            }
            Seen::Gone(desktop) => {
                let key = key_of(desktop);
                let template = cluster.index.gone(&key);
                cluster.templates.extend(template);
                cluster.queue.leave(&key);
                cluster.queue.take_given(&key);
                cluster.refusals.forget(&key);
                self.counted.notify_one();
                let before = node_held(&cluster, &key);
                let change = cluster.snapshot.desktop_gone(&key);
                self.changed(&mut cluster, change);
                cluster.unclear.remove(&key);
                cluster.held_last.remove(&key);
                self.close(&mut cluster);
                self.access_of(&key.namespace, [before, None]);
            }
            Seen::Complete => {
                drop(cluster);
                self.wake_all();
            }
        }
    }

    /// What a desktop holds. Where that cannot be read, or its status has lost it, what was known of it stays taken;
    /// where nothing was known, its node takes no more.
    fn take_in(&self, cluster: &mut Cluster, key: &DesktopKey, desktop: &Desktop) {
        if cluster.holds_untold(key, desktop) && cluster.snapshot.holds(key).is_some() {
            return;
        }
        let known = node_held(cluster, key);
        let unclear = understood::holds_unclear(desktop)
            .filter(|node| known.is_none() || node.is_some_and(|node| known.as_deref() != Some(node)));
        if understood::holds_unclear(desktop).is_none() || known.is_none() {
            let given = cluster.snapshot.assumed(key).filter(|_| cluster.queue.given(key).is_some());
            let change = cluster.snapshot.desktop_seen(desktop);
            if !Self::given_again(cluster, key, desktop, given.map(|given| given.allocation)) {
                self.changed(cluster, change);
            }
        }
        match unclear {
            Some(node) => _ = cluster.unclear.insert(key.clone(), node.map(ToOwned::to_owned)),
            None => _ = cluster.unclear.remove(key),
        }
        self.close(cluster);
    }

    /// A place that a desktop was given in its turn, and that nobody has begun to write, stays given when no
    /// more than its status changed, as when it was just saying why it waits.
    fn given_again(
        cluster: &mut Cluster,
        key: &DesktopKey,
        desktop: &Desktop,
        given: Option<Arc<Allocation>>,
    ) -> bool {
        let Some(given) = given.filter(|_| cluster.snapshot.assumed(key).is_none()) else { return false };
        let version = desktop.resource_version().unwrap_or_default();
        let as_it_was = cluster.queue.given(key).is_some_and(|ask| ask.is_asked_by(desktop));
        let again = as_it_was
            && cluster.snapshot.holds(key).is_none()
            && cluster.snapshot.assume(key, &version, &given).is_ok();
        if !again {
            cluster.queue.take_given(key);
        }
        again
    }

    /// Closes to new desktops what is not understood, and opens what is again.
    fn close(&self, cluster: &mut Cluster) {
        let Cluster { snapshot, unclear, odd_nodes, .. } = cluster;
        let closed = understood::closed(unclear.values(), odd_nodes, snapshot.node_names());
        let change = snapshot.set_unclear(closed);
        self.changed(cluster, change);
    }

    /// A template came in: its own status is looked at, and its desktops when its spec is new.
    pub fn template(&self, seen: Seen<'_, DesktopTemplate>) {
        let (Seen::There(template) | Seen::Gone(template)) = seen else { return self.wake_all() };
        let key = DesktopKey::new(&template.namespace().unwrap_or_default(), &template.name_any());
        if matches!(seen, Seen::There(_)) && template.finalizers().is_empty() {
            // Not gathered with others: what uses it may come at once.
            let _ = self.queues.templates.unbounded_send(ObjectRef::from_obj(template));
        }
        let mut cluster = self.lock();
        if !is_new(&mut cluster.templates_seen, key.clone(), template, matches!(seen, Seen::Gone(_))) {
            cluster.templates.insert(key);
            self.counted.notify_one();
            return;
        }
        cluster.index.of_template(&key).iter().for_each(|desktop| self.wake(desktop));
        cluster.templates.insert(key);
        self.counted.notify_one();
    }

    /// A profile came in: its own status is looked at, and templates that ask for it and their
    /// desktops when its spec is new.
    pub fn profile(&self, seen: Seen<'_, GpuProfile>) {
        let (Seen::There(profile) | Seen::Gone(profile)) = seen else { return self.wake_all() };
        let name = profile.name_any();
        let gone = matches!(seen, Seen::Gone(_));
        if !is_new(&mut self.lock().profiles_seen, name.clone(), profile, gone) {
            self.counted.notify_one();
            return;
        }
        let asks =
            |template: &DesktopTemplate| template.spec.gpus.iter().any(|gpu| gpu.profile_ref.name == name);
        let templates: Vec<DesktopKey> = self
            .stores
            .templates
            .state_filter(asks)
            .iter()
            .map(|template| DesktopKey::new(&template.namespace().unwrap_or_default(), &template.name_any()))
            .collect();
        let mut cluster = self.lock();
        cluster.index.of_profile(&name).iter().for_each(|desktop| self.wake(desktop));
        for template in templates {
            cluster.index.of_template(&template).iter().for_each(|desktop| self.wake(desktop));
            cluster.templates.insert(template);
        }
        self.counted.notify_one();
    }

    /// A node came in.
    pub fn node(&self, seen: Seen<'_, GpuNode>) {
        let mut cluster = self.lock();
        match seen {
            Seen::There(node) => {
                let name = node.name_any();
                let was_away = cluster.missing.remove(&name).is_some();
                let off = node.spec.out_of_service;
                let word_is_new =
                    if off { cluster.said_off.insert(name.clone()) } else { cluster.said_off.remove(&name) };
                if was_away {
                    cluster.words.remove(&name);
                    cluster.told.remove(&name);
                }
                if was_away || word_is_new {
                    cluster.index.on_node(&name).for_each(|desktop| self.wake(desktop));
                }
                self.take_in_reports(&mut cluster, &name, Some(node));
                cluster.liveness.node_seen(node);
                if odd(node).is_some() {
                    cluster.odd_nodes.insert(name.clone())
                } else {
                    cluster.odd_nodes.remove(&name)
                };
                self.offer(&mut cluster, node);
                self.close(&mut cluster);
                self.judge(&mut cluster);
                self.wake_node(&name);
            }
            Seen::Gone(node) => {
                let name = node.name_any();
                cluster.missing.insert(name.clone(), Instant::now());
                cluster.liveness.node_gone(&name);
                cluster.said_off.remove(&name);
                let waited = cluster.refusals.node_gone(&name, Instant::now());
                for desktop in &waited {
                    self.wake(desktop);
                }
                self.take_in_reports(&mut cluster, &name, None);
                cluster.odd_nodes.remove(&name);
                let change = cluster.snapshot.node_gone(&name);
                self.changed(&mut cluster, change);
                self.close(&mut cluster);
                cluster.index.on_node(&name).for_each(|desktop| self.wake(desktop));
            }
            Seen::Complete => {
                cluster.nodes_known = true;
                self.judge(&mut cluster);
                drop(cluster);
                self.listed.notify_one();
                self.wake_all();
            }
        }
    }

    /// Takes in what a node offers, less what it refused.
    fn offer(&self, cluster: &mut Cluster, node: &GpuNode) {
        let now = Instant::now();
        cluster.refusals.news(node, now).iter().for_each(|desktop| self.wake(desktop));
        let less = cluster.refusals.offer(node, now);
        let change = cluster.snapshot.node_seen(less.as_ref().unwrap_or(node));
        self.changed(cluster, change);
    }

    /// A node refused a decision: what it named is left out of what it offers.
    pub fn refused(&self, key: &DesktopKey, decision: AllocationId, node: &str, refusal: &Refusal) {
        let object = self.stores.nodes.get(&ObjectRef::new(node));
        let mut cluster = self.lock();
        if cluster.refusals.note(key, decision, node, object.as_deref(), refusal, Instant::now()) {
            tracing::warn!(desktop = %key, node, why = refusal.message, "the node refused what was decided");
            self.metrics.refused();
            if let Some(object) = object {
                self.offer(&mut cluster, &object);
            }
        }
    }

    /// Nodes that may run what the API does not tell of: nobody is placed or let go before they have said so.
    pub fn unproven(&self) -> Option<Unproven> {
        unproven(&self.lock())
    }

    /// What is known of a desktop made of this, that asks for a place.
    pub fn admission_facts<'a>(&self, desktop: &'a Desktop, made_of: &str) -> admit::Facts<'a> {
        let mut cluster = self.lock();
        let unproven = unproven(&cluster);
        admit::Facts { desktop, unproven, refused: cluster.refusals.waits(&key_of(desktop), made_of) }
    }

    /// A desktop was given what was decided, or asks for nothing any more.
    pub fn not_refused(&self, key: &DesktopKey) {
        self.lock().refusals.forget(key);
    }

    /// A lease came in.
    pub fn lease(&self, seen: Seen<'_, Lease>) {
        let mut cluster = self.lock();
        match seen {
            Seen::There(lease) if cluster.leases_known => cluster.liveness.seen(lease, Instant::now()),
            Seen::There(lease) => cluster.liveness.listed(lease, Instant::now(), now().0),
            Seen::Gone(lease) => cluster.liveness.gone(lease),
            Seen::Complete => {
                cluster.awaits_nodes |= !cluster.leases_known;
                cluster.leases_known = true;
                self.listed.notify_one();
                cluster.snapshot.node_names().for_each(|node| self.wake_node(node));
            }
        }
        self.judge(&mut cluster);
    }

    /// Judges anew which nodes are silent, and lets go of what nobody asks for any more; called as time
    /// passes.
    pub fn tick(&self) {
        let mut cluster = self.lock();
        cluster.liveness.forget_old(Instant::now());
        self.judge(&mut cluster);
        self.forget_gone(&mut cluster);
        for node in cluster.refusals.over(Instant::now()) {
            if let Some(object) = self.stores.nodes.get(&ObjectRef::new(&node)) {
                self.offer(&mut cluster, &object);
            }
        }
        self.metrics.waiting(cluster.queue.len());
        let Cluster { missing, index, .. } = &mut *cluster;
        missing
            .retain(|node, since| since.elapsed() < NODE_LOST_AFTER || index.on_node(node).next().is_some());
    }

    /// Forgets desktops that are gone, where a round that was under way noted something of them after that; now and
    /// then, for all are looked up.
    fn forget_gone(&self, cluster: &mut Cluster) {
        if cluster.forgotten_at.is_some_and(|at| at.elapsed() < FORGET_EVERY) {
            return;
        }
        cluster.forgotten_at = Some(Instant::now());
        let there = |key: &DesktopKey| {
            self.stores.desktops.get(&ObjectRef::new(&key.name).within(&key.namespace)).is_some()
        };
        let Cluster { held_last, told, refusals, not_kept, .. } = cluster;
        if held_last.len() > self.stores.desktops.len() {
            held_last.retain(|key, _| there(key));
        }
        for told in told.values_mut() {
            told.retain(there);
        }
        told.retain(|_, told| !told.is_empty());
        not_kept.retain(|key, _| there(key));
        refusals.retain(there);
    }

    fn judge(&self, cluster: &mut Cluster) {
        if !cluster.leases_known {
            return;
        }
        if cluster.awaits_nodes && cluster.nodes_known && !cluster.liveness.may_be_unproven(Instant::now()) {
            cluster.awaits_nodes = false;
            self.wake_all();
        }
        let silent = cluster.liveness.silent(cluster.snapshot.node_names(), Instant::now());
        if silent == cluster.silent {
            return;
        }
        let before = std::mem::replace(&mut cluster.silent, silent.clone());
        for node in before.symmetric_difference(&silent) {
            self.metrics.silent(node, silent.contains(node));
            cluster.told.remove(node);
            cluster.words.remove(node);
            self.wake_node(node);
            cluster.index.on_node(node).for_each(|desktop| self.wake(desktop));
        }
        let change = cluster.snapshot.set_silent(silent);
        self.changed(cluster, change);
    }
}

fn unproven(cluster: &Cluster) -> Option<Unproven> {
    cluster.awaits_nodes.then(|| cluster.liveness.unproven(Instant::now())).flatten()
}
