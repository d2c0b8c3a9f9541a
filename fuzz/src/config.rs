use landbridge::{config, topology::Topology};

/// A group file: refused with at least one mistake that is safe to print, or
/// good enough to be seen from each of its appliances.
pub(crate) fn group_file(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match config::parse(text, "group.toml") {
        Ok(group) => {
            for (site, index, appliance) in group.appliances() {
                let topology = Topology::new(&group, site, index);
                assert_eq!(topology.appliance, appliance.name);
                assert!(!topology.peers.is_empty() && !appliance.underlay.is_empty());
                assert_eq!(group.myself(&appliance.public_key), Ok((site, index)));
            }
            let again = config::parse(&format!("\n# same\n{text}"), "group.toml");
            assert_eq!(again.map(|group| group.digest), Ok(group.digest));
        }
        Err(problems) => {
            assert!(problems.count() > 0 && problems.iter().all(|p| p.line > 0 && p.column > 0));
            let shown = problems.to_string();
            let unsafe_to_print = |c: char| c.is_control() && c != '\n';
            assert!(!shown.contains(unsafe_to_print), "{shown:?}");
        }
    }
}
