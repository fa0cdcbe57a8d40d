//! Room that is kept for a request that has waited long, on the node where the least is in its way.
//!
//! What is kept counts as taken by nobody's desktop, beside what others still have there: what ends on
//! that node is given to nobody else before the whole of it is free.

use std::sync::Arc;

use gpudesk_crds::Allocation;

use crate::{
    request::{DesktopKey, Request},
    snapshot::{Change, Snapshot},
};

/// Room that is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Reservation {
    /// The node.
    pub node: String,
    /// The desktops whose end would make it fit: few, and not always the fewest.
    pub in_the_way: Vec<DesktopKey>,
    allocation: Arc<Allocation>,
}

impl Snapshot {
    /// What to keep for a request that fits nowhere now; nothing where no node would do if it were empty.
    /// Looks at some nodes, those first on which the least is taken.
    pub fn plan_reservation(&mut self, request: &Request) -> Option<Reservation> {
        let nodes = self.nodes_in_question(request);
        let found = nodes.into_iter().filter_map(|(id, held)| {
            let node = self.estate.node(id)?.facts.as_ref()?.name.to_string();
            self.reservation_on(request, node, held)
        });
        found.min_by_key(|reservation| reservation.in_the_way.len())
    }

    /// Takes desktops away until the request fits, puts back those that need not go, and leaves everything
    /// as it was.
    fn reservation_on(
        &mut self,
        request: &Request,
        node: String,
        held: Vec<(DesktopKey, Arc<Allocation>)>,
    ) -> Option<Reservation> {
        let here = Request { home: Some(node.clone()), ..request.clone() };
        let mut away = vec![];
        let mut placed = None;
        for (key, allocation) in held {
            self.lift(&key, &node);
            away.push((key, allocation));
            placed = self.place(&here).ok();
            if placed.is_some() {
                break;
            }
        }
        if placed.is_some() {
            let mut needed = vec![];
            for (key, allocation) in std::mem::take(&mut away) {
                self.put_down(&key, &allocation);
                if let Ok(better) = self.place(&here) {
                    placed = Some(better);
                } else {
                    self.lift(&key, &node);
                    needed.push((key, allocation));
                }
            }
            away = needed;
        }
        for (key, allocation) in &away {
            self.put_down(key, allocation);
        }
        let allocation = Arc::new(placed?.allocation(None));
        Some(Reservation { node, in_the_way: away.into_iter().map(|(key, _)| key).collect(), allocation })
    }

    /// Keeps this room and no other from now on.
    pub fn reserve(&mut self, reservation: Option<&Reservation>) -> Change {
        let nobody = DesktopKey::default();
        let before = std::mem::replace(&mut self.reserved, reservation.cloned());
        if before == self.reserved {
            return Change::default();
        }
        self.revision += 1;
        if let Some(before) = &before {
            self.estate.hold(&before.node, &nobody, None);
        }
        if let Some(now) = reservation {
            self.estate.hold(&now.node, &nobody, Some(&now.allocation));
        }
        Change { freed: before.is_some(), any: false }
    }

    /// The room that is kept.
    pub fn reserved(&self) -> Option<&Reservation> {
        self.reserved.as_ref()
    }

    /// Thinks or decides as if no room were kept.
    pub fn without_reservation<T>(&mut self, think: impl FnOnce(&mut Self) -> T) -> T {
        let kept = self.reserved.clone();
        self.reserve(None);
        let answer = think(self);
        self.reserve(kept.as_ref());
        answer
    }
}
