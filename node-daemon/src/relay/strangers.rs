//! Connections that have not shown a good ticket yet: a bounded number. Pure.
//!
//! When one more comes, the oldest goes of the address that has most of them: a flood from a few addresses
//! pushes out itself, and idle ones keep nobody out. Addresses of IPv6 count by their network of 64 bits,
//! of which whoever has one address usually has all.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
};

/// So many: descriptors stay far below the usual limit of 1,024.
pub(super) const STRANGERS: usize = 128;

/// Strangers in the order in which they came.
pub(super) struct Strangers<T>(VecDeque<(IpAddr, T)>);

impl<T> Default for Strangers<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Strangers<T> {
    /// Forgets those who are strangers no more.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.0.retain(|(_, stranger)| keep(stranger));
    }

    /// Adds one; returns the one who has to go for it.
    pub(super) fn push(&mut self, address: IpAddr, stranger: T) -> Option<T> {
        self.0.push_back((of_one(address), stranger));
        if self.0.len() <= STRANGERS {
            return None;
        }
        let mut counts = HashMap::<IpAddr, usize>::new();
        for (address, _) in &self.0 {
            *counts.entry(*address).or_default() += 1;
        }
        let most = counts.values().max().copied();
        let goes = self.0.iter().position(|(address, _)| counts.get(address).copied() == most)?;
        self.0.remove(goes).map(|(_, stranger)| stranger)
    }
}

/// What stands for everybody who may have this address.
fn of_one(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses, and how many connections of each.
    type Crowd<'a> = &'a [(&'a str, usize)];

    /// Those who had to go, when strangers come from these addresses: so many from each, in turn.
    fn gone(come: Crowd<'_>) -> Vec<(String, usize)> {
        let mut strangers = Strangers::default();
        let mut gone = HashMap::<String, usize>::new();
        for (address, count) in come {
            for _ in 0..*count {
                if let Some(who) = strangers.push(address.parse().unwrap(), (*address).to_owned()) {
                    *gone.entry(who).or_default() += 1;
                }
            }
        }
        let mut gone: Vec<_> = gone.into_iter().collect();
        gone.sort();
        gone
    }

    #[test]
    fn who_has_most_goes() {
        let cases: [(Crowd<'_>, Crowd<'_>); 6] = [
            (&[("192.0.2.1", STRANGERS)], &[]),
            (&[("192.0.2.1", STRANGERS + 5)], &[("192.0.2.1", 5)]),
            // A flood after one who came in good faith, and before.
            (&[("192.0.2.1", 1), ("192.0.2.2", 1000)], &[("192.0.2.2", 873)]),
            (&[("192.0.2.2", 1000), ("192.0.2.1", 3)], &[("192.0.2.2", 875)]),
            // Two floods share what there is.
            (
                &[("192.0.2.3", 100), ("192.0.2.1", 1), ("192.0.2.2", 100)],
                &[("192.0.2.2", 36), ("192.0.2.3", 37)],
            ),
            // One network of IPv6 is one; an address of IPv4 in other clothes is that address.
            (
                &[("2001:db8:0:1::1", 1), ("2001:db8::1", 60), ("2001:db8::2", 67), ("2001:db8::3", 1)],
                &[("2001:db8::1", 1)],
            ),
        ];
        for (come, go) in cases {
            let go: Vec<_> = go.iter().map(|(address, count)| ((*address).to_owned(), *count)).collect();
            assert_eq!(gone(come), go, "{come:?}");
        }
        assert_eq!(of_one("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn of_those_who_have_as_many_the_oldest_goes() {
        let mut strangers = Strangers::default();
        let address = |number: usize| IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()]);
        for number in 0..STRANGERS {
            assert_eq!(strangers.push(address(number), number), None);
        }
        assert_eq!(strangers.push(address(200), 200), Some(0));
        strangers.retain(|number| *number != 7);
        assert_eq!(strangers.push(address(201), 201), None, "who is no stranger any more leaves his place");
    }
}
