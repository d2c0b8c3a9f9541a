//! The management socket's server: one JSON [`Request`] per line in, one JSON
//! [`Response`] per line out, over a Unix socket that only root and the
//! appliance's own user can use.
#![allow(clippy::disallowed_methods)]

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::fs::FlockOperation;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedWriteHalf},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
    time::timeout,
};

use super::model::{MAX_REQUEST_BYTES, Request, Response};

/// Where appliances put their sockets.
pub const RUNTIME_DIRECTORY: &str = "/run/landbridge";

/// Clients served at once; one more is told so and hung up on.
pub const MAX_CLIENTS: usize = 16;

/// Queries waiting for the control loop.
pub const QUERY_QUEUE: usize = MAX_CLIENTS;

/// How long a client may take to send a request or to take a response, and how
/// long the control loop may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request on its way to the control loop, which answers through `reply`.
#[derive(Debug)]
pub struct Query {
    /// What is asked.
    pub request: Request,
    /// Takes the answer; the asker may be gone.
    pub reply: oneshot::Sender<Response>,
}

/// A bound management socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Held (by `flock`) as long as this appliance runs, so that its death, of
    /// whatever kind, makes the socket replaceable without a race.
    _lock: File,
}

/// Why the management socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The directory is missing and could not be made.
    #[error("cannot make the directory {}\n  try: run as root, or choose another place with --socket", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The lock file beside the socket can't be opened or locked.
    #[error("cannot lock {}\n  try: run as root, or choose another place with --socket", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another process serves this socket.
    #[error(
        "this appliance is already running (process {pid} serves {})\n  try: landbridge status --socket {0}, or stop it: systemctl stop landbridge",
        path.display()
    )]
    AlreadyRunning {
        /// The socket.
        path: PathBuf,
        /// Its process id, as it told.
        pid: String,
    },
    /// A dead process's socket can't be removed, or something else lies there.
    #[error("cannot replace {}", path.display())]
    Replace {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket can't be bound.
    #[error("cannot bind the management socket {}", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The socket of the appliance `name` in [`RUNTIME_DIRECTORY`].
pub fn default_path(name: &str) -> PathBuf {
    Path::new(RUNTIME_DIRECTORY).join(format!("{name}.sock"))
}

impl Server {
    /// Binds `path`: makes its directory (mode 0700) if there is none,
    /// replaces the socket of a dead process, refuses to replace a live one's.
    ///
    /// Must be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|source| BindError::Directory { path: directory.to_owned(), source })?;
        }
        let lock = lock(path)?;
        match remove_stale(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(BindError::Replace { path: path.to_owned(), source: error });
            }
            _ => {}
        }
        let listener = UnixListener::bind(path)
            .and_then(|listener| {
                fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
                Ok(listener)
            })
            .map_err(|source| BindError::Bind { path: path.to_owned(), source })?;
        Ok(Self { listener, path: path.to_owned(), _lock: lock })
    }

    /// Serves clients until cancelled; each request goes to `queries`.
    pub async fn serve(self, queries: mpsc::Sender<Query>) {
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors or memory: it would fail at once again.
                    tracing::warn!(%error, "the management socket cannot accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                refuse(&stream, &format!("{MAX_CLIENTS} clients are connected: try again"));
                continue;
            };
            if !may_ask(&stream) {
                refuse(&stream, "only root may ask");
                continue;
            }
            let queries = queries.clone();
            clients.spawn(async move {
                if let Err(error) = converse(stream, queries).await {
                    tracing::debug!(%error, "a management client was lost");
                }
                drop(place);
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn lock(socket: &Path) -> Result<File, BindError> {
    let path = socket.with_extension("lock");
    let failed = |source| BindError::Lock { path: path.clone(), source };
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            let _ = (&file).take(20).read_to_string(&mut pid);
            return Err(BindError::AlreadyRunning { path: socket.to_owned(), pid });
        }
        Err(errno) => return Err(failed(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// Removes a socket, and nothing but a socket.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a socket"));
    }
    fs::remove_file(path)
}

/// Root or the appliance's own user (SO_PEERCRED, unix(7)).
fn may_ask(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own)
}

/// Says why and hangs up, without waiting for a client that doesn't read.
fn refuse(stream: &UnixStream, reason: &str) {
    let _ = stream.try_write(&line(&Response::Error(reason.to_owned())));
}

async fn converse(stream: UnixStream, queries: mpsc::Sender<Query>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut request = Vec::new();
    loop {
        request.clear();
        let mut bounded = (&mut reader).take(MAX_REQUEST_BYTES);
        let read = bounded.read_until(b'\n', &mut request);
        if timeout(PATIENCE, read).await?? == 0 {
            return Ok(());
        }
        if request.last() != Some(&b'\n') && request.len() as u64 == MAX_REQUEST_BYTES {
            let reason = format!("a request is at most {MAX_REQUEST_BYTES} bytes");
            return send(&mut writer, &Response::Error(reason)).await;
        }
        let response = match serde_json::from_slice(&request) {
            Ok(request) => ask(request, &queries).await,
            Err(error) => Response::Error(format!("not a request: {error}")),
        };
        send(&mut writer, &response).await?;
    }
}

async fn ask(request: Request, queries: &mpsc::Sender<Query>) -> Response {
    let (reply, answer) = oneshot::channel();
    let asked = async {
        queries.send(Query { request, reply }).await.ok()?;
        answer.await.ok()
    };
    match timeout(PATIENCE, asked).await {
        Ok(Some(response)) => response,
        Ok(None) => Response::Error("the appliance is stopping".to_owned()),
        Err(_) => Response::Error("the appliance is too busy to answer: try again".to_owned()),
    }
}

async fn send(writer: &mut OwnedWriteHalf, response: &Response) -> io::Result<()> {
    timeout(PATIENCE, writer.write_all(&line(response))).await?
}

fn line(response: &Response) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(response).expect("the model has only string keys");
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, Write},
        os::unix::net::UnixStream,
    };

    use super::{super::client, super::model::Status, *};

    /// A server in a directory of its own, whose control loop tells its name.
    async fn appliance(path: &Path) -> JoinSet<()> {
        let server = Server::bind(path).unwrap();
        let (sender, mut queries) = mpsc::channel::<Query>(QUERY_QUEUE);
        let mut tasks = JoinSet::new();
        tasks.spawn(server.serve(sender));
        tasks.spawn(async move {
            while let Some(query) = queries.recv().await {
                let response = match query.request {
                    Request::Status => Response::Status(Box::new(Status {
                        appliance: "east-1".into(),
                        ..Default::default()
                    })),
                    Request::Macs { network } => Response::Error(format!("no {network:?}")),
                    Request::Counters => continue,
                };
                let _ = query.reply.send(response);
            }
        });
        tasks
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    /// One line out, one line back, by hand.
    fn exchange(path: &Path, request: &[u8]) -> String {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    }

    #[tokio::test]
    async fn a_request_makes_the_round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/east-1.sock");
        let _tasks = appliance(&path).await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        blocking(move || {
            let Ok(Response::Status(status)) = client::request(&path, &Request::Status) else {
                panic!("no status");
            };
            assert_eq!(status.appliance, "east-1");
            let refused = client::request(&path, &Request::Macs { network: Some("x".into()) });
            assert_eq!(refused.unwrap_err().to_string(), "the appliance refused: no Some(\"x\")");
        })
        .await;
    }

    #[tokio::test]
    async fn garbage_and_oversize_get_an_error_and_harm_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _tasks = appliance(&path).await;
        blocking(move || {
            let garbage: [&[u8]; 5] =
                [b"\n", b"\xff\xfe\n", b"{}\n", b"[1\n", b"{\"request\":\"reboot\"}\n"];
            for request in garbage {
                let answer = exchange(&path, request);
                assert!(answer.starts_with(r#"{"error":"not a request: "#), "{answer}");
            }
            let oversized = exchange(&path, &vec![b'x'; MAX_REQUEST_BYTES as usize]);
            assert!(oversized.contains("at most 65536 bytes"), "{oversized}");
            assert!(exchange(&path, b"{\"request\":\"status\"}\n").contains("east-1"));
        })
        .await;
    }

    #[tokio::test]
    async fn an_unanswered_query_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _tasks = appliance(&path).await;
        let answer = blocking(move || exchange(&path, b"{\"request\":\"counters\"}\n")).await;
        assert!(answer.contains("is stopping"), "{answer}");
    }

    #[tokio::test]
    async fn one_client_too_many_is_told_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let _tasks = appliance(&path).await;
        blocking(move || {
            let mut held: Vec<_> =
                (0..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
            let mut answer = String::new();
            let excess = UnixStream::connect(&path).unwrap();
            BufReader::new(excess).read_line(&mut answer).unwrap();
            assert!(answer.contains("16 clients are connected"), "{answer}");
            let first = &mut held[0];
            first.write_all(b"{\"request\":\"status\"}\n").unwrap();
            let mut answer = String::new();
            BufReader::new(first).read_line(&mut answer).unwrap();
            assert!(answer.contains("east-1"));
        })
        .await;
    }

    #[tokio::test]
    async fn a_live_socket_is_kept_and_a_stale_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        let mut first = appliance(&path).await;
        let error = Server::bind(&path).unwrap_err();
        let BindError::AlreadyRunning { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, std::process::id().to_string());
        assert!(path.exists(), "the refused one must not remove it");

        first.shutdown().await;
        assert!(!path.exists());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a stale socket");
        let _second = appliance(&path).await;
        blocking(move || client::request(&path, &Request::Status).unwrap()).await;
    }

    #[tokio::test]
    async fn what_is_no_socket_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        let error = Server::bind(&path).unwrap_err();
        assert!(matches!(error, BindError::Replace { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
