//! Each target over its committed corpus, without libFuzzer.

use std::{fs, path::Path};

use landbridge_fuzz::{TARGETS, find, seeds};

const FILES_MAX: usize = 50;
const FILE_LENGTH_MAX: usize = 4096;

#[test]
fn each_target_survives_its_corpus() {
    for target in TARGETS {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
        let files: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap()).collect();
        assert!((1..=FILES_MAX).contains(&files.len()), "{}", target.name);
        for file in files {
            let bytes = fs::read(file.path()).unwrap();
            assert!(bytes.len() <= FILE_LENGTH_MAX, "{}", file.path().display());
            (target.run)(&bytes);
        }
    }
}

#[test]
fn the_generator_serves_every_target() {
    let seeds = seeds::all();
    assert!(seeds.iter().all(|seed| find(seed.target).is_some()));
    assert!(TARGETS.iter().all(|target| seeds.iter().any(|seed| seed.target == target.name)));
}
