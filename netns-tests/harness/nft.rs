//! Loss and cuts by the kernel: nftables in the underlay's router.

use landbridge::lab::{Namespace, Pair, Side};

/// Drops a share of the forwarded packets that come from `from`, until dropped.
pub(crate) struct Loss<'a> {
    router: &'a Namespace,
    table: String,
}

impl<'a> Loss<'a> {
    /// `per_mille` 1000 cuts this direction.
    pub(crate) fn new(pair: &'a Pair, from: Side, per_mille: u32) -> Self {
        let loss = Self { router: &pair.router, table: format!("loss_{}", from.site()) };
        let interface = from.site();
        // nft refuses a comparison that always holds.
        let share = match per_mille {
            1000 => String::new(),
            _ => format!("numgen random mod 1000 < {per_mille}"),
        };
        let rules = format!(
            "table inet {table} {{ chain forward {{ type filter hook forward priority 0; \
             iifname \"{interface}\" {share} counter drop; }}; }}",
            table = loss.table
        );
        loss.router.exec(&["nft", &rules]).unwrap().success().unwrap();
        loss
    }

    /// Packets dropped so far.
    pub(crate) fn dropped(&self) -> u64 {
        let argv = ["nft", "list", "table", "inet", &self.table];
        let rules = self.router.exec(&argv).unwrap().success().unwrap().stdout;
        let counter = rules.split_once("counter packets ").expect("the rule counts").1;
        counter.split_whitespace().next().and_then(|packets| packets.parse().ok()).unwrap()
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        let _ = self.router.exec(&["nft", "delete", "table", "inet", &self.table]);
    }
}

/// Keeps the router from sending ICMP errors, as bad firewalls do, until dropped.
pub(crate) struct NoIcmp<'a>(&'a Namespace);

impl<'a> NoIcmp<'a> {
    pub(crate) fn new(pair: &'a Pair) -> Self {
        let rules = "table inet no_icmp { chain output { type filter hook output priority 0; \
                     icmp type destination-unreachable drop; icmpv6 type packet-too-big drop; }; }";
        pair.router.exec(&["nft", rules]).unwrap().success().unwrap();
        Self(&pair.router)
    }
}

impl Drop for NoIcmp<'_> {
    fn drop(&mut self) {
        let _ = self.0.exec(&["nft", "delete", "table", "inet", "no_icmp"]);
    }
}
