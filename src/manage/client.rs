//! Asks a running appliance.
#![allow(clippy::disallowed_methods)]

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    model::{MAX_RESPONSE_BYTES, Request, Response},
    socket::RUNTIME_DIRECTORY,
};

/// How long to wait for an answer: longer than the server waits for its
/// control loop, so that the server's own explanation arrives.
const PATIENCE: Duration = Duration::from_secs(8);

/// Why an appliance could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No appliance runs here.
    #[error(
        "no appliance is running here (nothing serves {})\n  try: systemctl status landbridge, or start one: landbridge run --group FILE --key FILE",
        path.display()
    )]
    NotRunning {
        /// The socket, or the directory without any.
        path: PathBuf,
    },
    /// This user may not ask.
    #[error("only root may ask an appliance ({})\n  try: sudo landbridge …", path.display())]
    Permission {
        /// The socket or its directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Several appliances run here.
    #[error("several appliances are running here\n  try: one of{}", options(paths))]
    Several {
        /// Their sockets.
        paths: Vec<PathBuf>,
    },
    /// The directory of sockets can't be listed.
    #[error("cannot list {}", path.display())]
    List {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket can't be connected to.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("the appliance at {} did not answer\n  try: journalctl -u landbridge", path.display())]
    Exchange {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer is no answer.
    #[error("cannot understand the appliance at {}: is its version another one?\n  try: systemctl restart landbridge", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Where it stops making sense.
        source: serde_json::Error,
    },
    /// The appliance answered with an error.
    #[error("the appliance refused: {0}")]
    Refused(String),
}

fn options(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("\n    --socket {}", path.display())).collect()
}

/// The only appliance's socket in [`RUNTIME_DIRECTORY`].
///
/// # Errors
///
/// [`ClientError::NotRunning`], [`ClientError::Several`],
/// [`ClientError::Permission`] or [`ClientError::List`].
pub fn find_socket() -> Result<PathBuf, ClientError> {
    find_socket_in(Path::new(RUNTIME_DIRECTORY))
}

fn find_socket_in(directory: &Path) -> Result<PathBuf, ClientError> {
    let entries = fs::read_dir(directory).map_err(|source| {
        let path = directory.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::NotRunning { path },
            io::ErrorKind::PermissionDenied => ClientError::Permission { path, source },
            _ => ClientError::List { path, source },
        }
    })?;
    let mut alive: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("sock")))
        .filter(|path| !is_stale(path))
        .collect();
    alive.sort();
    match alive.len() {
        0 => Err(ClientError::NotRunning { path: directory.to_owned() }),
        1 => Ok(alive.remove(0)),
        _ => Err(ClientError::Several { paths: alive }),
    }
}

/// A socket that a killed process left behind refuses connections.
fn is_stale(path: &Path) -> bool {
    UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Asks the appliance at the socket `path`. Blocks for at most some seconds.
///
/// # Errors
///
/// [`ClientError`]; a [`Response::Error`] becomes [`ClientError::Refused`].
pub fn request(path: &Path, request: &Request) -> Result<Response, ClientError> {
    let stream = UnixStream::connect(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path }
            }
            io::ErrorKind::PermissionDenied => ClientError::Permission { path, source },
            _ => ClientError::Connect { path, source },
        }
    })?;
    let answer = exchange(stream, request)
        .map_err(|source| ClientError::Exchange { path: path.to_owned(), source })?;
    match serde_json::from_slice(&answer) {
        Ok(Response::Error(reason)) => Err(ClientError::Refused(reason)),
        Ok(response) => Ok(response),
        Err(source) => Err(ClientError::Answer { path: path.to_owned(), source }),
    }
}

fn exchange(mut stream: UnixStream, request: &Request) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    // A server that hangs up at once has said why: read that before giving up.
    let sent = stream.write_all(&line);
    let mut answer = Vec::new();
    BufReader::new(stream).take(MAX_RESPONSE_BYTES).read_until(b'\n', &mut answer)?;
    if answer.is_empty() {
        sent?;
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn nobody_there_names_the_next_command() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("no.sock");
        for error in [
            request(&missing, &Request::Status).unwrap_err(),
            find_socket_in(directory.path()).unwrap_err(),
            find_socket_in(&directory.path().join("none")).unwrap_err(),
        ] {
            assert!(matches!(error, ClientError::NotRunning { .. }), "{error}");
            assert!(error.to_string().contains("try: systemctl status landbridge"), "{error}");
        }
    }

    #[test]
    fn the_only_live_socket_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        drop(UnixListener::bind(at("dead.sock")).unwrap());
        fs::write(at("east-1.lock"), "1").unwrap();
        let _first = UnixListener::bind(at("east-1.sock")).unwrap();
        assert_eq!(find_socket_in(directory.path()).unwrap(), at("east-1.sock"));

        let _second = UnixListener::bind(at("west-1.sock")).unwrap();
        let error = find_socket_in(directory.path()).unwrap_err();
        let ClientError::Several { paths } = &error else { panic!("{error}") };
        assert_eq!(*paths, [at("east-1.sock"), at("west-1.sock")]);
        assert!(error.to_string().contains("--socket"), "{error}");
    }

    #[test]
    fn a_stranger_on_the_socket_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for answer in ["", "{\"status\":7}\n", "{\"mystery\":[]}\n"] {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut request = String::new();
                    BufReader::new(stream.try_clone().unwrap()).read_line(&mut request).unwrap();
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            });
            let ask = || request(&path, &Request::Status).unwrap_err();
            assert!(matches!(ask(), ClientError::Exchange { .. }));
            assert!(matches!(ask(), ClientError::Answer { .. }));
            assert!(matches!(ask(), ClientError::Answer { .. }));
        });
    }
}
