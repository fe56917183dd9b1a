//! Where packets go: to a station on the link, or to a gateway there.

use std::net::IpAddr;

use foldhash::HashMap;

pub use crate::plane::routes::Prefix;
use crate::plane::routes::{Address, Prefixes};

/// The next station on the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// The address itself.
    Direct,
    Gateway(IpAddr),
}

/// A destination, and the gateway to it if it is not on the link.
pub type Route = (Prefix, Option<IpAddr>);

/// The routes: those that were given, and the own addresses' subnets.
#[derive(Default)]
pub struct Routes {
    given: Option<HashMap<Prefix, Hop>>,
    subnets: Vec<Prefix>,
    table: Prefixes<Hop>,
    /// Where there is a station at the other end that takes everything (TUN).
    point_to_point: bool,
}

impl Routes {
    pub fn new(point_to_point: bool) -> Routes {
        Routes { point_to_point, ..Routes::default() }
    }

    /// Replaces the given routes. `None`: on a point-to-point link everything goes to the other end,
    /// on another only what is in a subnet.
    pub fn set(&mut self, given: Option<Vec<Route>>) {
        self.given =
            given.map(|routes| routes.into_iter().map(|(prefix, gateway)| (prefix, hop(gateway))).collect());
        self.build();
    }

    /// Gives one more, or another to the same destination.
    pub fn add(&mut self, (prefix, gateway): Route) {
        self.given.get_or_insert_default().insert(prefix, hop(gateway));
        self.table.insert(prefix, hop(gateway));
    }

    /// Takes back the one to this destination. Harmless where there is none.
    pub fn remove(&mut self, prefix: Prefix) {
        if self.given.as_mut().and_then(|given| given.remove(&prefix)).is_none() {
            return;
        }
        if self.subnets.contains(&prefix) {
            self.table.insert(prefix, Hop::Direct);
        } else {
            self.table.remove(prefix);
        }
    }

    pub fn set_subnets(&mut self, subnets: Vec<Prefix>) {
        self.subnets = subnets;
        self.build();
    }

    /// Whether there is a way to every address, and it is always the same.
    pub fn is_trivial(&self) -> bool {
        self.point_to_point && self.given.is_none()
    }

    /// The way to an address of a single host; `None` where there is none.
    pub fn hop(&self, address: IpAddr) -> Option<Hop> {
        if self.is_trivial() { Some(Hop::Direct) } else { self.table.get(Address::from(address)).copied() }
    }

    fn build(&mut self) {
        let given = self.given.iter().flatten().map(|(prefix, hop)| (*prefix, *hop));
        // Later ones replace earlier ones of the same prefix: a given route is stronger than a subnet.
        self.table = self.subnets.iter().map(|subnet| (*subnet, Hop::Direct)).chain(given).collect();
    }
}

fn hop(gateway: Option<IpAddr>) -> Hop {
    gateway.map_or(Hop::Direct, Hop::Gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_longest_prefix_wins_and_without_routes_the_kind_of_link_decides() {
        let mut routes = Routes::new(false);
        routes.set_subnets(vec!["10.8.0.0/24".parse().unwrap()]);
        assert_eq!(routes.hop(ip("10.8.0.77")), Some(Hop::Direct));
        assert_eq!(routes.hop(ip("192.0.2.1")), None);
        let gateway = |text: &str| Some(ip(text));
        routes.set(Some(vec![
            ("0.0.0.0/0".parse().unwrap(), gateway("10.8.0.1")),
            ("192.0.2.0/24".parse().unwrap(), gateway("10.8.0.2")),
            ("192.0.2.128/25".parse().unwrap(), None),
        ]));
        for (address, hop) in [
            ("198.51.100.1", Hop::Gateway(ip("10.8.0.1"))),
            ("192.0.2.1", Hop::Gateway(ip("10.8.0.2"))),
            ("192.0.2.129", Hop::Direct),
            ("10.8.0.3", Hop::Direct),
        ] {
            assert_eq!(routes.hop(ip(address)), Some(hop), "{address}");
        }
        assert_eq!(routes.hop(ip("fd00::1")), None);
        routes.add(("10.8.0.0/24".parse().unwrap(), gateway("10.8.0.1")));
        routes.add(("192.0.2.0/24".parse().unwrap(), gateway("10.8.0.9")));
        assert_eq!(routes.hop(ip("10.8.0.3")), Some(Hop::Gateway(ip("10.8.0.1"))));
        assert_eq!(routes.hop(ip("192.0.2.1")), Some(Hop::Gateway(ip("10.8.0.9"))));
        for prefix in ["10.8.0.0/24", "10.8.0.0/24", "192.0.2.0/24"] {
            routes.remove(prefix.parse().unwrap());
        }
        assert_eq!(routes.hop(ip("10.8.0.3")), Some(Hop::Direct));
        assert_eq!(routes.hop(ip("192.0.2.1")), Some(Hop::Gateway(ip("10.8.0.1"))));
        let mut tun = Routes::new(true);
        assert_eq!(tun.hop(ip("198.51.100.1")), Some(Hop::Direct));
        tun.set(Some(Vec::new()));
        assert_eq!(tun.hop(ip("198.51.100.1")), None);
    }
}
