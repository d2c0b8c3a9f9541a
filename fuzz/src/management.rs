use landbridge::manage::{
    model::{Request, Response},
    render::{self, Style},
};

/// A line from a client, or from a server: decoded, encoded again and shown.
pub(crate) fn management(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let line = serde_json::to_vec(&request).expect("a request");
        assert!(!line.contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<Request>(&line).expect("the same"), request);
    }
    let Ok(response) = serde_json::from_slice::<Response>(data) else { return };
    let line = serde_json::to_vec(&response).expect("a response");
    assert!(!line.contains(&b'\n'));
    let shown = match &response {
        Response::Status(status) => render::status(status, Style::PLAIN),
        Response::Macs(table) => render::macs(table, Style::PLAIN),
        Response::Counters(counters) => render::counters(counters, true, Style::PLAIN),
        Response::Error(_) => return,
    };
    let unsafe_to_print = |c: char| c.is_control() && c != '\n';
    assert!(!shown.contains(unsafe_to_print), "{shown:?}");
}
