use landbridge::{
    bridge::{fdb::Location, reflection::ReflectionDetector, underlay_guard::UnderlayGuard},
    time::Instant,
    topology::{NetworkIndex, SiteIndex},
};

/// Any frame: judged without a panic, and a group frame that was emitted is
/// recognised when it comes back.
pub(crate) fn underlay_guard(data: &[u8]) {
    let endpoints = ["192.0.2.1:51840", "[2001:db8::1]:51840"];
    let guard = UnderlayGuard::new(&endpoints.map(|e| e.parse().expect("an endpoint")));
    let is_own = guard.is_own_underlay(data);
    assert!(!is_own || !UnderlayGuard::default().is_own_underlay(data));
    if is_own {
        assert!(data.windows(2).any(|port| port == 51840u16.to_be_bytes()));
    }

    let (now, network) = (Instant::ZERO, NetworkIndex(0));
    let remote = Some(Location::Site(SiteIndex(1)));
    let mut reflections = ReflectionDetector::new([1, 2]);
    reflections.emitted(now, network, data);
    let is_group = data.len() >= 6 && data[0] & 1 != 0;
    assert_eq!(reflections.is_reflection(now, network, data, remote), is_group);
    assert!(!reflections.is_reflection(now, NetworkIndex(1), data, remote));
    assert!(!reflections.is_reflection(now, network, data, Some(Location::Local)));
}
