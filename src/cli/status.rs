//! `landbridge status`: networks, attachments, peers and tunnels.
#![allow(clippy::disallowed_methods)]

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::Duration,
};

use anyhow::bail;

use crate::manage::{
    client::{self, ClientError},
    log,
    model::{Request, Response},
    render::{self, Style},
};

const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Clears a terminal and moves to its top left corner (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Shows how the appliance on this host is: networks, attachments, peers,
/// tunnels. Needs root.
///
/// Example: sudo landbridge status --watch
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    appliance: Appliance,
    /// Print JSON, for scripts (with --watch: one object per line)
    #[arg(long)]
    json: bool,
    /// Repeat every second, until interrupted
    #[arg(long)]
    watch: bool,
}

/// Which of this host's appliances is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Appliance {
    /// Management socket of the appliance [default: the only one in
    /// /run/landbridge]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

impl Appliance {
    /// Asks it.
    pub(super) fn ask(&self, request: &Request) -> Result<Response, ClientError> {
        let path = self.socket.as_deref().map(Path::to_owned);
        let path = path.map_or_else(client::find_socket, Ok)?;
        client::request(&path, request)
    }
}

/// Runs `landbridge status`.
///
/// # Errors
///
/// If the appliance can't be asked or stdout not be written.
pub fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    loop {
        let text = text(arguments)?;
        if !arguments.watch {
            return print(&text);
        }
        let clear = io::stdout().is_terminal() && !arguments.json;
        if print(&format!("{}{text}", if clear { CLEAR } else { "" }))? != ExitCode::SUCCESS {
            return Ok(ExitCode::FAILURE);
        }
        thread::sleep(WATCH_INTERVAL);
    }
}

fn text(arguments: &Arguments) -> anyhow::Result<String> {
    let Response::Status(status) = arguments.appliance.ask(&Request::Status)? else {
        bail!("the appliance answered another question");
    };
    Ok(match (arguments.json, arguments.watch) {
        (true, true) => serde_json::to_string(&status)? + "\n",
        (true, false) => serde_json::to_string_pretty(&status)? + "\n",
        (false, _) => render::status(&status, style()),
    })
}

/// How text on stdout looks.
pub(super) fn style() -> Style {
    Style { colour: log::colour_on(&io::stdout()) }
}

/// Prints `text`; a reader that left early (`| head`) is no error to report.
pub(super) fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::FAILURE),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        os::unix::net::UnixListener,
    };

    use super::*;
    use crate::manage::model::Status;

    #[test]
    fn status_is_shown_as_text_or_json() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("east-1.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let status = Status { appliance: "east-1".into(), ..Default::default() };
        let show = |json, watch| {
            let appliance = Appliance { socket: Some(socket.clone()) };
            text(&Arguments { appliance, json, watch }).unwrap()
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..3 {
                    let (mut stream, _) = listener.accept().unwrap();
                    let mut request = String::new();
                    BufReader::new(&stream).read_line(&mut request).unwrap();
                    let response = Response::Status(Box::new(status.clone()));
                    writeln!(stream, "{}", serde_json::to_string(&response).unwrap()).unwrap();
                }
            });
            assert!(show(false, false).contains("appliance east-1"));
            for watch in [false, true] {
                let text = show(true, watch);
                assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), status);
                assert_eq!(text.lines().count() == 1, watch, "one line each only when watched");
            }
        });
    }
}
