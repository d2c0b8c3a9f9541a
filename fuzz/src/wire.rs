use landbridge::{
    offload::{checksum, headers::Headers},
    wire::{
        datagram::{HEADER_LENGTH, Header, POSITION_LENGTH, Position},
        ethernet::{self, Frame, MacAddr, VlanTag},
        record::{self, Record},
        signal::{self, Item},
    },
};

pub(crate) fn datagram(data: &[u8]) {
    if let Ok(header) = Header::parse(data) {
        let mut bytes = [0; HEADER_LENGTH];
        header.emit(&mut bytes);
        assert_eq!(data[..HEADER_LENGTH], bytes);
    }
    if let Some(bytes) = data.first_chunk::<POSITION_LENGTH>() {
        let mut again = [0; POSITION_LENGTH];
        Position::parse(bytes).emit(&mut again);
        assert_eq!(*bytes, again);
    }
}

pub(crate) fn record(data: &[u8]) {
    if let Some(header) = data.first_chunk() {
        assert!(record::length(*header).is_none_or(|length| length <= record::RECORD_LENGTH_MAX));
    }
    if let Ok(trailer) = record::parse_trailer(data) {
        assert!(trailer.frame.len() >= trailer.head.len() && trailer.frame.end < data.len());
    }
    let Ok(parsed) = record::parse(data) else { return };
    assert!(parsed.frame.len() >= ethernet::HEADER_LENGTH);
    if parsed.frame.len() > record::FRAME_LENGTH_MAX {
        return;
    }
    let again = Record::new(parsed.network, parsed.offload, parsed.frame).parts().concat();
    assert_eq!(record::length(*again.first_chunk().expect("a prefix")), Some(again.len()));
    assert_eq!(record::parse(&again), Ok(parsed));
}

pub(crate) fn signal(data: &[u8]) {
    let mut known = Vec::new();
    let mut bytes = Vec::new();
    for item in signal::parse(data) {
        if let Item::Known(signal) = item {
            signal.emit(&mut bytes);
            known.push(item);
        }
    }
    assert!(bytes.len() <= data.len(), "no signal grows");
    assert_eq!(signal::parse(&bytes).collect::<Vec<_>>(), known);
}

pub(crate) fn ethernet(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(address) = text.parse::<MacAddr>()
    {
        assert_eq!(address.to_string().parse(), Ok(address));
    }
    if let Ok(headers) = Headers::parse(data) {
        let Headers { l3_offset, l4_offset, payload_offset, end, .. } = headers;
        assert!(l3_offset < l4_offset && l4_offset <= payload_offset);
        assert!(payload_offset <= end && end <= data.len());
        assert_eq!(Headers::parse_head(&data[..payload_offset], data.len()), Ok(headers));
        let mut finished = data.to_vec();
        let _ = checksum::complete(&mut finished);
    }
    let _ = checksum::verify(data);
    let Ok(frame) = Frame::new_checked(data) else { return };
    let _ = (frame.destination(), frame.source(), frame.ethertype());
    assert_eq!(frame.payload_offset() + frame.payload().len(), data.len());
    let (header, rest) = data.split_first_chunk().expect("checked");
    let tag = VlanTag { tpid: VlanTag::CUSTOMER, tci: 7 };
    let tagged = [&ethernet::insert_tag(header, tag), rest].concat();
    let tagged = Frame::new_checked(&tagged).expect("longer");
    assert_eq!(tagged.tags().next(), Some(tag));
    if frame.tags().count() < ethernet::MAX_TAGS {
        assert!(tagged.tags().skip(1).eq(frame.tags()));
        assert_eq!(tagged.payload(), frame.payload());
    }
}
