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
             iifname \"{interface}\" {share} drop; }}; }}",
            table = loss.table
        );
        loss.router.exec(&["nft", &rules]).unwrap().success().unwrap();
        loss
    }
}

impl Drop for Loss<'_> {
    fn drop(&mut self) {
        let _ = self.router.exec(&["nft", "delete", "table", "inet", &self.table]);
    }
}
