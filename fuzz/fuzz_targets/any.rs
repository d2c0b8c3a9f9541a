//! Any target under libFuzzer: the environment's `FUZZ_TARGET` names it.
#![no_main]
#![allow(missing_docs)]

use std::sync::OnceLock;

static RUN: OnceLock<fn(&[u8])> = OnceLock::new();

fn choose() -> fn(&[u8]) {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let Some(target) = landbridge_fuzz::find(&name) else {
        let names: Vec<_> = landbridge_fuzz::TARGETS.iter().map(|target| target.name).collect();
        panic!("FUZZ_TARGET={name:?} is none of: {}", names.join(" "));
    };
    target.run
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| RUN.get_or_init(choose)(data));
