//! Keeps guests with user networks away from the host: a filter in nftables, in the network namespace
//! in which libvirt runs QEMU.
//!
//! ```text
//!   QEMU of a desktop, in a group of its own ──▶ output of the host ──▶ gpudesk-guests: out, or refused
//!                                                                            ▲
//!   before each start, and every few seconds: is it there and whole? ── no ──┘ put (back), all at once
//! ```

mod place;
pub mod resolver;
pub mod rules;

use std::time::Duration;

use clap::{Args, ValueEnum};
use gpudesk_inventory::status::GuestNetworkView;
use ipnet::IpNet;
use thiserror::Error;
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, sleep},
};

use self::{
    place::Place,
    rules::{FAMILIES, Rules},
};

/// The group of QEMU processes where none is set: of a range that no distribution, no user database
/// and no container engine gives numbers from (systemd's table of UIDs and GIDs calls it unused).
const GROUP: u32 = 2_113_000_001;
/// How often it is seen to that the filter is there.
const OFTEN: Duration = Duration::from_secs(3);

/// How guests with user networks are kept away from the host.
#[derive(Clone, Debug, Args)]
pub struct GuestNetworkSettings {
    /// What keeps guests with user networks away from the host and from each other. `enforce`: rules of
    /// nftables that the daemon puts into the network namespace of libvirt; without them no desktop
    /// with a user network starts. `external`: something else does, and the daemon leaves it to that.
    #[arg(long, value_enum, default_value_t)]
    pub guest_network_filter: Filter,
    /// A network that guests with user networks may not reach, beside every address of the host, such as
    /// the ranges of Pods and Services. May be given several times.
    #[arg(long = "guest-deny", value_name = "CIDR", value_parser = rules::network)]
    pub guest_deny: Vec<IpNet>,
    /// Number of the group that QEMU runs in, by which guests' traffic is told from everything else.
    /// Nothing else may use it; it needs no name.
    #[arg(long, value_name = "GID", default_value_t = GROUP, value_parser = clap::value_parser!(u32).range(1..=4_294_967_294))]
    pub guest_group: u32,
    /// Whether guests with user networks may ask the nameserver in the resolv.conf of libvirt's host, at
    /// port 53 alone, where that is an address which they may not reach otherwise, as with a resolver on
    /// the host's loopback.
    #[arg(long, value_enum, default_value_t)]
    pub guest_host_resolver: HostResolver,
}

impl Default for GuestNetworkSettings {
    fn default() -> Self {
        Self {
            guest_network_filter: Filter::default(),
            guest_deny: vec![],
            guest_group: GROUP,
            guest_host_resolver: HostResolver::default(),
        }
    }
}

/// Who keeps guests away from the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Filter {
    /// The daemon.
    #[default]
    Enforce,
    /// The owner of the machine.
    External,
}

/// Whether guests may ask the host's nameserver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HostResolver {
    /// They may.
    #[default]
    Allow,
    /// They may not.
    Refuse,
}

/// Why guests cannot be kept away from the host.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GuestNetworkError {
    /// It is not known where QEMU's traffic is to be filtered.
    #[error("guests cannot be kept off the host: {0}{OTHERWISE}")]
    Place(String),
    /// `nft` could not be run, or refused.
    #[error(
        "guests cannot be kept off the host: nft in libvirt's network namespace: {0}; see that nft is installed where \
         the daemon runs, that the kernel has nf_tables, and that the daemon is privileged (in the chart \
         nodeDaemon.privileged){OTHERWISE}"
    )]
    Nft(String),
    /// libvirt has no user to run QEMU as.
    #[error(
        "guests cannot be kept off the host: libvirt does not say as which user it runs QEMU (no baselabel of the \
         model dac in its capabilities), so QEMU cannot be given a group of its own; use qemu:///system{OTHERWISE}"
    )]
    NoUser,
}

/// The way round.
const OTHERWISE: &str = "; or keep them off by other means and set --guest-network-filter external (in the chart \
    nodeDaemon.guestNetwork.filter)";

/// The filter of one host.
#[derive(Debug)]
pub struct GuestNetwork {
    settings: GuestNetworkSettings,
    uri: String,
    standing: Mutex<Standing>,
    view: watch::Sender<GuestNetworkView>,
}

/// What stands where.
#[derive(Debug, Default)]
struct Standing {
    place: Option<Place>,
    /// The script that was run, and how nft showed the tables right after it.
    put: Option<(String, String)>,
    /// When the last look began, and what it found.
    seen: Option<(Instant, Result<(), GuestNetworkError>)>,
}

impl GuestNetwork {
    /// The filter for the guests of the libvirt at `uri`.
    pub fn new(settings: GuestNetworkSettings, uri: &str) -> Self {
        let view = if uri.starts_with("test:") {
            GuestNetworkView::NoGuests
        } else {
            match settings.guest_network_filter {
                Filter::External => GuestNetworkView::External,
                Filter::Enforce => GuestNetworkView::NotAsked,
            }
        };
        Self { settings, uri: uri.into(), standing: Mutex::default(), view: watch::Sender::new(view) }
    }

    /// The group that QEMU is to run in.
    pub fn group(&self) -> u32 {
        self.settings.guest_group
    }

    /// Whether the daemon has to see to it.
    pub fn is_enforced(&self) -> bool {
        match *self.view.borrow() {
            GuestNetworkView::NoGuests | GuestNetworkView::External => false,
            GuestNetworkView::NotAsked
            | GuestNetworkView::Filtered { .. }
            | GuestNetworkView::Unfiltered(_) => true,
        }
    }

    /// What is known of it, from now on.
    pub fn view(&self) -> watch::Receiver<GuestNetworkView> {
        self.view.subscribe()
    }

    /// Sees that the filter is there and whole, and puts it there where it is not.
    ///
    /// # Errors
    /// Why it is not there.
    pub async fn ensure(&self) -> Result<(), GuestNetworkError> {
        if !self.is_enforced() {
            return Ok(());
        }
        let asked = Instant::now();
        let mut standing = self.standing.lock().await;
        // A hundred desktops that start at once share a look that began after they asked.
        if let Some((_, outcome)) = standing.seen.as_ref().filter(|(began, _)| *began >= asked) {
            return outcome.clone();
        }
        let began = Instant::now();
        let outcome = self.put_where_missing(&mut standing).await;
        standing.seen = Some((began, outcome.clone()));
        let view = match &outcome {
            Ok(()) => GuestNetworkView::Filtered { except: vec![] },
            Err(error) => GuestNetworkView::Unfiltered(error.to_string()),
        };
        self.view.send_if_modified(|said| {
            let new = *said != view;
            if let (true, Err(error)) = (new, &outcome) {
                tracing::error!(%error, "desktops with user networks do not start");
            }
            *said = view;
            new
        });
        outcome
    }

    /// Sees to it for as long as it is awaited.
    pub async fn keep(&self) {
        loop {
            // Said in the status, and in the log when it is new.
            let _ = self.ensure().await;
            sleep(OFTEN).await;
        }
    }

    async fn put_where_missing(&self, standing: &mut Standing) -> Result<(), GuestNetworkError> {
        let before = standing.place.take();
        let place = match before {
            Some(place) if place.lasts() => place,
            before => match (Place::find(&self.uri).await, before) {
                (Ok(place), before) => {
                    if !before.is_some_and(|before| before.is_network_of(&place)) {
                        standing.put = None;
                    }
                    place
                }
                // libvirt is away: guests run on where it was.
                (Err(_), Some(before)) => before,
                (Err(error), None) => return Err(error),
            },
        };
        let place = standing.place.insert(place);
        let rules = self.rules(place);
        let script = rules.script();
        let put = standing.put.take().filter(|(before, _)| *before == script);
        if let Some((_, shown)) = &put
            && show(place, &rules).await.as_ref() == Ok(shown)
        {
            standing.put = put;
            return Ok(());
        }
        place.nft(&["-f", "-"], &script).await?;
        let shown = show(place, &rules).await?;
        if put.is_some() {
            tracing::warn!("the filter of guests' networks was gone or changed, and is put back");
        } else {
            tracing::info!(group = self.settings.guest_group, "guests' networks are filtered");
        }
        standing.put = Some((script, shown));
        Ok(())
    }

    fn rules(&self, place: &Place) -> Rules {
        let resolvers = match self.settings.guest_host_resolver {
            HostResolver::Allow => resolver::resolvers(&place.resolv_conf().unwrap_or_default()),
            HostResolver::Refuse => vec![],
        };
        Rules { group: self.settings.guest_group, deny: self.settings.guest_deny.clone(), resolvers }
    }
}

/// The tables as nft shows them: the same text as long as nobody touches them.
async fn show(place: &Place, rules: &Rules) -> Result<String, GuestNetworkError> {
    let mut text = String::new();
    let name = rules.table();
    for family in FAMILIES {
        text += &place.nft(&["-nn", "-s", "list", "table", family, &name], "").await?;
    }
    Ok(text)
}
