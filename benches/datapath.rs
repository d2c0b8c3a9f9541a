//! What a frame costs on its way: cipher, record stream, offload, MAC table, and
//! a whole worker. `cargo bench --bench datapath [-- FILTER]`.
#![allow(clippy::disallowed_methods)]

use std::{
    hint::black_box,
    time::{Duration, Instant as Stopwatch},
};

use criterion::{
    BatchSize, BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::WallTime,
};
use landbridge::{
    bridge::fdb::{Fdb, FdbConfig, Learned, Location, NetworkLimits},
    offload::{Offload, checksum, coalesce::Coalescer, salvage::Salvage, segment::segment},
    session::CipherSuite,
    stream::{Packer, StreamEvent, StreamSink, Unpacker},
    time::Instant,
    topology::{NetworkId, NetworkIndex, SiteIndex},
    wire::{
        datagram::{HEADER_LENGTH, POSITION_LENGTH, Position, TAG_LENGTH},
        ethernet::MacAddr,
        record::Record,
    },
};

#[path = "support/pair.rs"]
#[allow(dead_code)]
mod pair;

use pair::{EAST, Pair, WEST, flow, frame, segment_count, superframe};

/// UDP payload on a 1500-byte path.
const DATAGRAM_SIZE: usize = 1472;
/// Frames in a burst of small ones.
const BURST: usize = 64;

fn cipher(c: &mut Criterion) {
    for suite in CipherSuite::ALL {
        let (seal, open) = pair::keys(suite, EAST);
        for (verb, is_seal) in [("seal", true), ("open", false)] {
            let mut group = c.benchmark_group(format!("{verb}/{suite}"));
            for size in [64, 512, 1440, 8960] {
                group.throughput(Throughput::Bytes(size as u64));
                let header = [0; HEADER_LENGTH];
                let mut sealed = vec![0x5a; size];
                let mut tag = [0; TAG_LENGTH];
                seal.seal(7, &header, &mut sealed, &mut tag);
                sealed.extend(tag);
                let mut buffer = sealed.clone();
                group.bench_function(BenchmarkId::from_parameter(size), |b| {
                    b.iter(|| match is_seal {
                        true => seal.seal(7, &header, &mut buffer[..size], &mut tag),
                        false => {
                            buffer.copy_from_slice(&sealed);
                            open.open(7, &header, &mut buffer).expect("authentic");
                        }
                    });
                });
            }
        }
    }
}

/// Counts records.
struct Sink(usize);

impl StreamSink for Sink {
    fn record(&mut self, record: &[u8]) {
        black_box(record);
        self.0 += 1;
    }

    fn damaged(&mut self, _: &mut [u8], _: &[std::ops::Range<usize>]) {}

    fn event(&mut self, _: StreamEvent, _: u64) {}
}

/// Packs `frames` and gives each batch to `take`.
fn pack(packer: &mut Packer, frames: &[Vec<u8>], mut take: impl FnMut(usize, &mut [u8])) {
    for frame in frames {
        let record = Record::new(NetworkId(100), Offload::NONE, frame);
        if packer.is_full() {
            let (size, batch) = packer.take();
            take(size, batch);
        }
        packer.begin_record(record.has_trailer());
        for part in record.parts() {
            let mut rest = &part[packer.write(part)..];
            while !rest.is_empty() {
                let (size, batch) = packer.take();
                take(size, batch);
                rest = &rest[packer.write(rest)..];
            }
        }
    }
    let (size, batch) = packer.take();
    take(size, batch);
}

fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    for (name, frames) in
        [("64-small", vec![frame(EAST, 1, 60); BURST]), ("superframe", vec![superframe(EAST).1])]
    {
        group.throughput(Throughput::Elements(frames.len() as u64));
        let mut packer = Packer::new(DATAGRAM_SIZE);
        group.bench_function(BenchmarkId::new("pack", name), |b| {
            b.iter(|| {
                pack(&mut packer, &frames, |_, batch| {
                    black_box(batch);
                })
            });
        });
        let mut datagrams = Vec::new();
        pack(&mut packer, &frames, |size, batch| {
            datagrams.extend(batch.chunks(size).map(<[u8]>::to_vec));
        });
        group.bench_function(BenchmarkId::new("unpack", name), |b| {
            let (mut unpacker, mut counter, mut sink) = (Unpacker::default(), 0, Sink(0));
            b.iter(|| {
                for datagram in &datagrams {
                    let plaintext = &datagram[HEADER_LENGTH..datagram.len() - TAG_LENGTH];
                    let (position, bytes) =
                        plaintext.split_first_chunk::<POSITION_LENGTH>().expect("packed");
                    let position = Position::parse(position);
                    unpacker.receive(Instant::ZERO, counter, position, bytes, &mut sink);
                    counter += 1;
                }
            });
            let rounds = counter as usize / datagrams.len();
            assert_eq!(sink.0, rounds * frames.len(), "every record arrives");
        });
    }
}

fn offload(c: &mut Criterion) {
    let mut group = c.benchmark_group("offload");
    let (offload, superframe) = superframe(EAST);
    group.throughput(Throughput::Bytes(superframe.len() as u64));
    let mut scratch = vec![0; superframe.len()];
    group.bench_function("segment", |b| {
        b.iter(|| {
            segment(&superframe, &offload, &mut scratch, &mut |s| {
                black_box(s);
            })
            .expect("fits")
        });
    });
    group.bench_function("checksum", |b| b.iter(|| checksum::sum(black_box(&superframe))));
    group.finish();
    // Its time does not grow with the frame: no payload is copied.
    c.bench_function("offload/salvage-one-hole", |b| {
        b.iter_batched_ref(
            || superframe.clone(),
            |frame| {
                let salvage = Salvage::new(frame, frame.len(), &offload).expect("a superframe");
                black_box(salvage.part(frame, 0..30_000));
                let end = frame.len();
                black_box(salvage.part(frame, 31_440..end));
            },
            BatchSize::LargeInput,
        );
    });
}

/// Destinations looked up at once.
const LOOKUPS: usize = 32;

/// That many stations, in an order that is random and always the same.
fn stations(count: u32) -> Vec<(NetworkIndex, MacAddr)> {
    let station = |number: u32| {
        let [a, b, c, d] = number.to_be_bytes();
        (NetworkIndex(0), MacAddr([2, 0, a, b, c, d]))
    };
    let mut stations: Vec<_> = (0..count).map(station).collect();
    let mut random = 1u64;
    for last in (1..stations.len()).rev() {
        // xorshift64 (Marsaglia, 2003).
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        stations.swap(last, (random % (last as u64 + 1)) as usize);
    }
    stations
}

fn mac_table(stations: usize) -> Fdb {
    let limits = NetworkLimits { max_macs: stations as u32, ageing: Duration::from_secs(300) };
    Fdb::new(&FdbConfig { networks: &[limits], capacity: stations }, [1, 2])
}

fn fdb(c: &mut Criterion) {
    let mut group = c.benchmark_group("fdb");
    let (now, place) = (Instant::from_nanos(1), Location::Site(SiteIndex(1)));
    for count in [1_000, 64_000, 1_000_000] {
        let known = stations(count);
        let fdb = mac_table(known.len());
        // Another order than that of the lookups, as on a real LAN.
        let mut learned = known.clone();
        learned.sort_unstable_by_key(|(_, mac)| mac.0);
        for (network, mac) in learned {
            assert_eq!(fdb.learn(now, network, mac, place), Learned::New);
        }
        let mut wanted = known.iter().copied().cycle();
        let mut next = || wanted.next().expect("it goes round and round");
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("lookup", count), |b| {
            b.iter(|| {
                let (network, mac) = next();
                fdb.lookup(now, network, mac)
            });
        });
        group.bench_function(BenchmarkId::new("learn-known", count), |b| {
            b.iter(|| {
                let (network, mac) = next();
                fdb.learn(now, network, mac, place)
            });
        });
        group.throughput(Throughput::Elements(LOOKUPS as u64));
        let mut batches = known.chunks_exact(LOOKUPS).cycle();
        group.bench_function(BenchmarkId::new("lookup-32", count), |b| {
            b.iter(|| {
                let mut found = [None; LOOKUPS];
                fdb.lookup_batch(now, batches.next().expect("it goes round and round"), &mut found);
                found
            });
        });
    }
    learn_new(&mut group, now, place);
}

/// Learns 64,000 stations at a time, up to a million, and starts over.
fn learn_new(group: &mut BenchmarkGroup<'_, WallTime>, now: Instant, place: Location) {
    const AT_ONCE: usize = 64_000;
    let new = stations(1_000_000);
    let mut fdb = mac_table(new.len());
    let mut runs = new.chunks_exact(AT_ONCE);
    let mut longest = Duration::ZERO;
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    group.bench_function("learn-new", |b| {
        b.iter_custom(|iterations| {
            let mut spent = Duration::ZERO;
            for _ in 0..iterations {
                let run = runs.next().unwrap_or_else(|| {
                    fdb = mac_table(new.len());
                    runs = new.chunks_exact(AT_ONCE);
                    runs.next().expect("there are more stations than that")
                });
                for (network, mac) in run {
                    let start = Stopwatch::now();
                    let learned = fdb.learn(now, *network, *mac, place);
                    let took = start.elapsed();
                    assert_eq!(learned, Learned::New);
                    (spent, longest) = (spent + took, longest.max(took));
                }
            }
            spent
        });
    });
    // The scheduler's pauses are in it: it says something on an idle machine only.
    println!("fdb/learn-new: the longest took {longest:?}");
}

/// Frames on their way to the LAN, of one flow and of as many flows as frames.
fn coalesce(c: &mut Criterion) {
    let flows = |length| (0..BURST).map(|s| frame(EAST, s as u8, length)).collect();
    for length in [60, 1514] {
        let mut group = c.benchmark_group(format!("coalesce/{length}-bytes"));
        group.throughput(Throughput::Elements(BURST as u64));
        let bursts: [(_, Vec<_>); 2] =
            [("one-flow", flow(EAST, BURST as u16, length)), ("flows", flows(length))];
        for (name, frames) in bursts {
            let (mut coalescer, mut count) = (Coalescer::default(), 0);
            group.bench_function(name, |b| {
                b.iter(|| {
                    for frame in &frames {
                        coalescer.offer((), &Offload::NONE, frame, &mut |left| {
                            count += u64::from(black_box(left).merged);
                        });
                    }
                    coalescer.flush(&mut |left| count += u64::from(black_box(left).merged));
                });
            });
            assert!(count > 0 && count.is_multiple_of(BURST as u64), "every frame leaves");
        }
    }
}

/// LAN to tunnel: judged, packed, sealed, handed over. Tunnel to LAN: opened,
/// unpacked, learned, handed over. Neither end's system calls are in it.
fn worker(c: &mut Criterion) {
    for suite in CipherSuite::ALL {
        let small: Vec<_> = (0..BURST).map(|station| frame(EAST, station as u8, 60)).collect();
        let large = vec![frame(EAST, 1, 1514); BURST];
        let (offload, big) = superframe(EAST);
        for (name, offload, frames) in [
            ("60-bytes", Offload::NONE, small),
            ("60-bytes-one-flow", Offload::NONE, flow(EAST, BURST as u16, 60)),
            ("1514-bytes", Offload::NONE, large),
            ("64-KiB", offload, vec![big; 8]),
        ] {
            let mut group = c.benchmark_group(format!("worker/{suite}/{name}"));
            group.throughput(Throughput::Elements(frames.len() as u64));
            let mut pair = Pair::new(suite);
            for site in [EAST, WEST] {
                let known: Vec<_> = (0..BURST).map(|s| frame(site, s as u8, 60)).collect();
                pair.burst(site, Offload::NONE, &known);
            }
            let bytes: usize = frames.iter().map(Vec::len).sum();
            group.bench_function("lan-to-tunnel", |b| {
                b.iter(|| {
                    pair.load(EAST, offload, &frames);
                    assert!(pair.from_east.sent.len() > bytes, "every frame is sent");
                    pair.from_east.forget();
                });
            });
            // What was forgotten is a hole to the other side: let it be given up.
            pair.burst(EAST, Offload::NONE, &frames[..1]);
            pair.pass(Duration::from_millis(10));
            group.bench_function("tunnel-to-lan", |b| {
                b.iter_custom(|iterations| {
                    let (mut spent, before) = (Duration::ZERO, pair.from_west.frames);
                    let burst: u64 =
                        frames.iter().map(|frame| segment_count(&offload, frame)).sum();
                    for _ in 0..iterations {
                        pair.load(EAST, offload, &frames);
                        let start = Stopwatch::now();
                        let (wire, answers) = (&mut pair.from_east, &mut pair.from_west);
                        wire.carry(pair.now, &mut pair.west, WEST, answers);
                        spent += start.elapsed();
                        pair.from_west.forget();
                    }
                    let arrived = pair.from_west.frames - before;
                    assert_eq!(arrived, iterations * burst, "every frame arrives");
                    spent
                });
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = cipher, stream, offload, coalesce, fdb, worker
}
criterion_main!(benches);
