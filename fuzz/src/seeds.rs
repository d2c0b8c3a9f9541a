//! Makes the committed corpus: `cargo run --example seeds` writes it.

use landbridge::{
    manage::model::{Counter, MacTable, Request, Response, Status},
    offload::{Offload, Segmentation},
    topology::NetworkId,
    wire::{
        datagram::{HEADER_LENGTH, Header, Kind, POSITION_LENGTH, Position},
        record::Record,
        signal::{CloseReason, Signal},
    },
};

use crate::{pair, peer};

/// One file of the corpus.
pub struct Seed {
    /// The target's name.
    pub target: &'static str,
    /// The file's name.
    pub name: String,
    /// What is in it.
    pub bytes: Vec<u8>,
}

/// The whole corpus.
pub fn all() -> Vec<Seed> {
    let mut seeds = Vec::new();
    let mut put = |target, files: Vec<Vec<u8>>| {
        seeds.extend(files.into_iter().enumerate().map(|(number, bytes)| Seed {
            target,
            name: format!("{number:02}"),
            bytes,
        }));
    };
    put("group_file", group_files());
    put("datagram", datagrams());
    put("record", records());
    put("signal", signals());
    put("ethernet", ethernet());
    put("unpacker", unpacker());
    put("lossy_stream", lossy_stream());
    put("hello", hellos());
    put("handshake", (0..6).flat_map(handshakes).collect());
    put("virtio", virtio());
    put("segment", superframes(&[]));
    put("salvage", superframes(&[60, 0, 200, 0, 44, 1, 0xff, 1]));
    put("coalesce", coalesce());
    put("underlay_guard", underlay());
    put("worker", worker());
    put("control", control());
    put("management", management());
    seeds
}

fn group_files() -> Vec<Vec<u8>> {
    let example = include_str!("../../examples/group.toml");
    let short: Vec<&str> =
        example.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).collect();
    let short = short.join("\n");
    let broken = [
        ("name = \"east\"", "name = \"we\u{301}st\""),
        ("underlay", "underly"),
        ("192.0.2.11:51840", "192.0.2.11"),
        ("id = 200", "id = 100"),
        ("vlan = 200", "vlan = 4095"),
        ("attach.east", "attach.north"),
        ("lanes = 2", "lanes = 9999999999999999999999"),
        ("public_key = \"", "public_key = \"\\u001b[31m"),
        ("[group]", "[group]\n[group]"),
    ];
    let mut files: Vec<String> = vec![short.clone(), pair::GROUP.to_owned()];
    files.extend(broken.map(|(good, bad)| short.replacen(good, bad, 1)));
    files.into_iter().map(String::into_bytes).collect()
}

fn datagrams() -> Vec<Vec<u8>> {
    [Kind::Stream, Kind::Signal]
        .map(|kind| {
            let mut bytes = vec![0; HEADER_LENGTH + 40];
            let header = Header { kind, lane: 1, receiver: 0x0102_0304, counter: 1 << 33 };
            header.emit(bytes.first_chunk_mut().expect("a header"));
            bytes
        })
        .into()
}

fn offloads() -> Vec<Offload> {
    use Segmentation::{Tcp4, Tcp6, Udp4, Udp6};
    let cut = [Tcp4, Tcp6, Udp4, Udp6].map(|segmentation| Offload {
        segmentation,
        segment_size: 100,
        ..Offload::CHECKSUM
    });
    [&[Offload::NONE, Offload::CHECKSUM][..], &cut].concat()
}

fn record(offload: Offload, frame: &[u8]) -> Vec<u8> {
    Record::new(NetworkId(100), offload, frame).parts().concat()
}

fn records() -> Vec<Vec<u8>> {
    let mut files: Vec<_> = offloads()
        .into_iter()
        .map(|offload| record(offload, &frame(false, false, 0, 20)))
        .collect();
    files.push(vec![9, 2, 0, 0, 1, 2]);
    files
}

fn signals() -> Vec<Vec<u8>> {
    let signals = [
        Signal::Ping { sequence: 7 },
        Signal::Pong { sequence: 7 },
        Signal::Close { reason: CloseReason::Shutdown },
        Signal::GroupDigest { digest: [5; 32] },
    ];
    let mut all = Vec::new();
    let mut files: Vec<Vec<u8>> = Vec::new();
    for signal in signals {
        let mut bytes = Vec::new();
        signal.emit(&mut bytes);
        all.extend_from_slice(&bytes);
        files.push(bytes);
    }
    all.extend([99, 2, 0, 1, 1, 0, 0, 0]);
    files.push(all);
    files
}

/// A TCP or UDP frame with unfinished checksums.
fn frame(v6: bool, udp: bool, tags: usize, payload: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1];
    for tag in 0..tags {
        frame.extend([0x88 - 7 * (tag as u8 & 1), [0xa8, 0][tag & 1], 0, 100]);
    }
    let l4 = if udp { 8 } else { 20 } + payload;
    let protocol = if udp { 17 } else { 6 };
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((l4 as u16).to_be_bytes());
        frame.extend([protocol, 64]);
        frame.extend([0xfd; 32]);
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + l4 as u16).to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    }
    frame.extend([0xca, 0x80, 0xca, 0x80]);
    if udp {
        frame.extend((l4 as u16).to_be_bytes());
        frame.extend([0, 0]);
    } else {
        frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x99, 0xff, 0xff, 0, 0, 0, 0]);
    }
    frame.extend((0..payload).map(|at| at as u8));
    frame
}

fn frames(payload: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        frames.push(frame(v6, udp, 0, payload));
        frames.push(frame(v6, udp, 2, payload));
    }
    frames
}

fn ethernet() -> Vec<Vec<u8>> {
    let mut files = frames(30);
    let mut fragment = frame(false, true, 0, 30);
    fragment[20] = 0x20;
    let mut hop_by_hop = frame(true, false, 0, 30);
    hop_by_hop[20] = 0;
    hop_by_hop.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    hop_by_hop[19] += 8;
    let arp = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 1, 8, 6], &[0; 46]].concat();
    files.extend([fragment, hop_by_hop, arp, vec![0x81; 60], b"02:00:5e:10:00:01".to_vec()]);
    files
}

fn position(first_record: Option<u16>, skipped: u8, record_offset: u32) -> [u8; POSITION_LENGTH] {
    let mut bytes = [0; POSITION_LENGTH];
    Position { first_record, skipped, record_offset, has_trailer: false }.emit(&mut bytes);
    bytes
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_le_bytes(), bytes].concat()
}

fn unpacker() -> Vec<Vec<u8>> {
    let whole = record(Offload::NONE, &frame(false, false, 0, 20));
    let (head, tail) = whole.split_at(33);
    let datagram = |step: u8, at: [u8; POSITION_LENGTH], bytes: &[u8]| {
        [&[2, step][..], &at, &chunk(bytes)].concat()
    };
    let start = datagram(0, position(Some(0), 0, 0), head);
    let end = datagram(0, position(None, 0, 33), tail);
    let ahead = datagram(130, position(None, 0, 33), tail);
    let signal_then = datagram(0, position(Some(0), 1, 0), &whole);
    vec![
        datagram(0, position(Some(0), 0, 0), &whole),
        [&start[..], &end].concat(),
        [&start[..], &ahead, &[1, 120], &datagram(193, position(None, 0, 33), tail)].concat(),
        [&[0, 0][..], &signal_then].concat(),
        [&start[..], &datagram(255, position(None, 200, 33), tail)].concat(),
    ]
}

fn lossy_stream() -> Vec<Vec<u8>> {
    let mix = |seed: usize, length: usize| -> Vec<u8> {
        (0..length).map(|at| (at * at * seed + at * 7 + seed) as u8 | 2).collect()
    };
    vec![
        [&[200, 3][..], &[60, 0, 1, 0, 20, 5, 1, 1, 0, 0, 1, 1], &[2; 300]].concat(),
        [&[255, 12][..], &mix(3, 600)].concat(),
        [&[20, 31][..], &mix(5, 2000)].concat(),
        [&[90, 8][..], &[1, 16, 0, 0], &[3, 1, 0, 2].repeat(200)].concat(),
    ]
}

fn hello() -> Vec<u8> {
    let mut bytes = Vec::new();
    peer::hello(1).encode(&mut bytes);
    bytes
}

fn hellos() -> Vec<Vec<u8>> {
    let hello = hello();
    let mut future = hello.clone();
    future.extend([0xf0, 3, 1, 2, 3, 0, 0]);
    let mut incompatible = hello.clone();
    incompatible[2..6].copy_from_slice(&[9, 0, 9, 0]);
    vec![hello.clone(), future, incompatible, hello[..40].to_vec(), hello.repeat(2)]
}

fn handshakes(kind: u8) -> Vec<Vec<u8>> {
    let (ours, theirs) = (peer::identity(1).private.public(), peer::identity(2).private.public());
    let payload = |index: u32| [&index.to_le_bytes()[..], &hello()].concat();
    let message = peer::initiation(2, &ours, 7, &payload(7));
    let begun = peer::initiation(1, &theirs, 0x0101_0101, &payload(0x0101_0101));
    let response = peer::response(2, &begun, &ours, 9, &payload(9)).unwrap_or_default();
    let reply = [&[3, 0, 0, 0, 1, 1, 1, 1][..], &[9; 56]].concat();
    let bodies = match kind {
        0 | 5 => vec![message],
        1 => vec![payload(7), payload(8), Vec::new()],
        2 => vec![response],
        3 => vec![payload(9), payload(0)[..30].to_vec()],
        _ => vec![reply],
    };
    bodies.into_iter().map(|body| [&[kind][..], &body].concat()).collect()
}

fn descriptor(offload: Offload) -> [u8; 4] {
    use Segmentation::{None, Tcp4, Tcp6, Udp4, Udp6};
    let kinds = [None, Tcp4, Tcp6, Udp4, Udp6];
    let kind = kinds.iter().position(|kind| *kind == offload.segmentation).unwrap_or(0) as u8;
    let flags = u8::from(offload.ecn) | u8::from(!offload.needs_checksum) << 1;
    let [low, high] = offload.segment_size.to_le_bytes();
    [kind, flags, low, high]
}

/// Fitting descriptors before frames, with `between` in the middle.
fn superframes(between: &[u8]) -> Vec<Vec<u8>> {
    let kinds = &offloads()[2..];
    let fitting = frames(500).into_iter().enumerate().map(|(at, frame)| {
        let mended = [1, 0, 0];
        [&descriptor(kinds[at / 2])[..], between, &mended, &frame].concat()
    });
    let mut files: Vec<_> = fitting.collect();
    files.push(
        [&descriptor(Offload::CHECKSUM)[..], between, &[0; 3], &frame(false, true, 0, 9)].concat(),
    );
    files.push(
        [&descriptor(kinds[0])[..], between, &[1, 0, 0xe0], &frame(false, false, 0, 9)].concat(),
    );
    files
}

/// Runs of each kind of frame, whole, damaged, and interrupted by another.
fn coalesce() -> Vec<Vec<u8>> {
    const SUCCESSOR: u8 = 4;
    const SAME_ID: u8 = 2;
    const DAMAGED: u8 = 8;
    const FINISHED: u8 = 0xf0;
    const UNFINISHED: u8 = 0x10;
    let mended = |frame: &[u8]| chunk(&[&[1, 0, 0][..], frame].concat());
    let mut files = Vec::new();
    for mut frame in frames(40) {
        let headers = landbridge::offload::headers::Headers::parse(&frame).expect("IP");
        if headers.l4 == landbridge::offload::headers::L4::Tcp {
            frame[headers.l4_offset + 13] = 0x10;
        }
        let first = [&[FINISHED, 0][..], &mended(&frame)].concat();
        let next = [SUCCESSOR | FINISHED, 0].repeat(5);
        let unfinished = [SUCCESSOR | UNFINISHED, 0].repeat(3);
        let damaged = [SUCCESSOR | FINISHED | DAMAGED, 0, 60, 3];
        let fixed = [SAME_ID | FINISHED, 0].repeat(3);
        let elsewhere = [SUCCESSOR | FINISHED, 1];
        files.push([&first[..], &next, &unfinished].concat());
        files.push([&first[..], &next, &damaged, &next, &elsewhere, &first, &fixed].concat());
    }
    files
}

fn virtio() -> Vec<Vec<u8>> {
    let header = |flags: u8, gso: u8, start: u16, offset: u16| {
        let words = [0, 100, start, offset].map(u16::to_ne_bytes).concat();
        [&[flags, gso][..], &words].concat()
    };
    let cases = [
        (header(1, 1, 34, 16), frame(false, false, 0, 500)),
        (header(1, 0x81, 42, 16), frame(false, false, 2, 500)),
        (header(1, 4, 54, 16), frame(true, false, 0, 500)),
        (header(1, 5, 34, 6), frame(false, true, 0, 500)),
        (header(1, 5, 54, 6), frame(true, true, 0, 500)),
        (header(2, 1, 0, 0), frame(false, false, 0, 500)),
        (header(1, 0, 34, 16), frame(false, false, 0, 50)),
        (header(1, 0, 50, 8), frame(false, true, 0, 50)),
        (header(1, 0, 60, 2), frame(false, true, 0, 50)),
    ];
    let file = |(header, frame): (Vec<u8>, Vec<u8>)| {
        [&header[..], &descriptor(Offload::CHECKSUM), &[0; 3], &frame].concat()
    };
    cases.into_iter().map(file).collect()
}

fn underlay() -> Vec<Vec<u8>> {
    let mut files = frames(30);
    for (v6, tags) in [(false, 0), (false, 2), (true, 0)] {
        let mut own = frame(v6, true, tags, 30);
        let payload = own.len() - 30;
        own[payload..payload + 4].copy_from_slice(&[4, 1, 0, 0]);
        if v6 {
            let address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            own[22..38].copy_from_slice(&address);
        }
        files.push(own);
    }
    let mut multicast = frame(false, true, 0, 30);
    multicast[0] = 1;
    files.push(multicast);
    files
}

fn worker() -> Vec<Vec<u8>> {
    let small = frame(false, false, 0, 20);
    let big = frame(true, false, 0, 900);
    let network = |number: u8, offload: Offload, frame: &[u8]| {
        [&[1, number][..], &descriptor(offload), &chunk(frame), &[0]].concat()
    };
    let from_lan = |frame: &[u8]| [&[6, 0, 0, 0, 0, 0][..], &chunk(frame)].concat();
    let stretched = [&[6, 0, 0, 0, 0xff, 0x30][..], &chunk(&small)].concat();
    let tagged = [&[6, 1, 1, 0, 0, 0][..], &chunk(&small)].concat();
    let signal = |bytes: &[u8]| [&[4][..], &chunk(bytes), &[0]].concat();
    let (flush, pause) = ([8], [9, 0xff, 0xff]);
    let first = network(0, Offload::NONE, &small);
    let ping = signal(&signals()[0]);
    let whole = record(Offload::NONE, &small);
    let piece = |at: [u8; 6], bytes: &[u8]| [&[0][..], &at, &chunk(bytes), &[0]].concat();
    vec![
        first.clone(),
        network(0, offloads()[3], &big),
        network(1, Offload::NONE, &small),
        network(2, Offload::NONE, &small),
        [&first[..], &from_lan(&small), &flush].concat(),
        [&first[..], &from_lan(&[0xff; 60]), &stretched, &tagged, &flush, &pause].concat(),
        [&first[..], &ping, &signal(&signals()[4]), &pause, &pause].concat(),
        [
            &piece(position(Some(0), 0, 0), &whole[..20])[..],
            &piece(position(None, 0, 20), &whole[20..]),
        ]
        .concat(),
        [&first[..], &[10, 3], &stretched, &flush, &[10, 21], &stretched, &flush].concat(),
        [&first[..], &[11, 2, 5], &from_lan(&small), &flush, &[11, 1, 5], &pause].concat(),
    ]
}

fn control() -> Vec<Vec<u8>> {
    let (honest, pause) = ([3], [8, 0xe8, 3]);
    let signal = |bytes: &[u8]| [&[6, 0][..], &chunk(bytes)].concat();
    let hostile = [&[2, 7, 0, 0, 0][..], &chunk(&[&[7, 0, 0, 0][..], &hello()].concat())].concat();
    let answer = [&[4][..], &chunk(&[])].concat();
    let lie = [&[4][..], &chunk(&[&[5, 0, 0, 0][..], &hello()].concat())].concat();
    let mut files = vec![
        [&honest[..], &signal(&signals()[0]), &pause, &pause].concat(),
        [&answer[..], &signal(&signals()[4]), &pause].concat(),
        [&hostile[..], &lie, &pause, &answer].concat(),
        [&[5][..], &pause, &honest, &signal(&signals()[2]), &pause].concat(),
        [&honest[..], &signal(&signals()[3]), &[9, 1], &pause, &answer].concat(),
    ];
    files.push(handshakes(0)[0][..].iter().fold(vec![0, 0, 2], |mut file, byte| {
        file.push(*byte);
        file
    }));
    files
}

fn management() -> Vec<Vec<u8>> {
    let requests = [
        Request::Status,
        Request::Counters,
        Request::Macs { network: None },
        Request::Macs { network: Some("app".to_owned()) },
    ];
    let responses = [
        Response::Status(Box::<Status>::default()),
        Response::Macs(MacTable::default()),
        Response::Counters(vec![Counter::default()]),
        Response::Error("no".to_owned()),
    ];
    let mut files: Vec<Vec<u8>> =
        requests.iter().map(|request| serde_json::to_vec(request).expect("JSON")).collect();
    files.extend(responses.iter().map(|response| serde_json::to_vec(response).expect("JSON")));
    files
}
