//! The data thread: one [`Worker`], its queues of every attachment and its two
//! sockets, run to completion.
#![allow(clippy::disallowed_methods)]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use tokio::sync::mpsc;

use super::{
    clock,
    lan::{self, FRAME_BUFFER_LENGTH, LanQueue, ReceiveError},
    spin::Spin,
    underlay::{ReceiveBuffers, SocketPair},
};
use crate::{
    node::{Counter, DeliverError, Outlet, Worker, WorkerCommand, WorkerEvent},
    offload::Offload,
    time::Instant,
    topology::PortIndex,
    tunnel::{Path, SocketRole, TransmitError},
    wire::ethernet::VlanTag,
};

/// Commands that may wait for a thread.
const COMMANDS_MAX: usize = 1024;
/// Frames read from an attachment before the tunnel side is served: fewer cost
/// throughput (a burst is what fills datagrams and GSO sends).
const FRAMES_PER_TURN: usize = 16;
/// The thread shows that it is alive at least this often.
const WAIT_MAX: Duration = Duration::from_secs(1);
/// How often the queues are looked after, at most; at least as often as the thread turns.
const LAN_CHECK_INTERVAL_NS: u64 = 250_000_000;
const EPOLL_EVENTS: usize = 64;

const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_LISTENER: u64 = u64::MAX - 1;
const TOKEN_DIALER: u64 = u64::MAX - 2;

/// What the control thread asks of a data thread.
pub enum ThreadCommand {
    /// For its worker.
    Worker(WorkerCommand),
    /// Use this queue for that port from now on.
    Attach {
        /// The port.
        port: PortIndex,
        /// Its queue.
        queue: LanQueue,
    },
    /// The port's queue is dead.
    Detach {
        /// The port.
        port: PortIndex,
    },
}

/// The control thread's end of a data thread.
pub struct DataThread {
    commands: Sender<ThreadCommand>,
    wake: Arc<OwnedFd>,
    alive_at: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    sockets: Arc<SharedSockets>,
    handle: Option<JoinHandle<()>>,
}

/// The pair is used by its thread alone; the control thread only asks the
/// kernel for its drop counters.
struct SharedSockets(OwnedFd, OwnedFd);

/// The data thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start a data thread: {step}")]
pub struct StartError {
    step: &'static str,
    #[source]
    source: io::Error,
}

impl DataThread {
    /// Starts the thread of `worker`.
    ///
    /// # Errors
    /// Where the kernel has no thread or file descriptor left.
    pub fn start(
        name: String,
        worker: Worker,
        sockets: SocketPair,
        spin: Spin,
        events: mpsc::Sender<WorkerEvent>,
    ) -> Result<Self, StartError> {
        let failed =
            |step| move |errno: rustix::io::Errno| StartError { step, source: errno.into() };
        let (sender, commands) = crossbeam_channel::bounded(COMMANDS_MAX);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(failed("eventfd"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        watch(&epoll, wake.as_fd(), TOKEN_WAKE).map_err(failed("epoll_ctl"))?;
        let duplicate = |socket: &super::underlay::UnderlaySocket| {
            socket
                .as_fd()
                .try_clone_to_owned()
                .map_err(|source| StartError { step: "duplicating a socket", source })
        };
        let shared = SharedSockets(duplicate(&sockets.listener)?, duplicate(&sockets.dialer)?);
        let wake = Arc::new(wake);
        let stopping = Arc::new(AtomicBool::new(false));
        let alive_at = Arc::new(AtomicU64::new(clock::now().as_nanos()));
        let thread = Thread {
            worker,
            outlet: LanAndUnderlay { lan: Vec::new(), sockets },
            commands,
            events,
            wake: wake.clone(),
            alive_at: alive_at.clone(),
            stopping: stopping.clone(),
            epoll,
            spin,
            frame: vec![0; FRAME_BUFFER_LENGTH].into_boxed_slice(),
            datagrams: ReceiveBuffers::default(),
            check_lan_at: 0,
        };
        let handle = std::thread::Builder::new()
            .name(name)
            .spawn(move || thread.run())
            .map_err(|source| StartError { step: "spawning it", source })?;
        Ok(Self {
            commands: sender,
            wake,
            alive_at,
            stopping,
            sockets: Arc::new(shared),
            handle: Some(handle),
        })
    }

    /// Hands over a command. Returns `false` where the thread has ended or is
    /// so far behind that its queue is full.
    pub fn send(&self, command: ThreadCommand) -> bool {
        match self.commands.try_send(command) {
            Ok(()) => {
                let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
                true
            }
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    /// When the thread last showed that it is alive, ns on [`clock`].
    pub fn alive_at(&self) -> u64 {
        self.alive_at.load(Relaxed)
    }

    /// Datagrams that the kernel dropped for want of buffer.
    pub fn kernel_drops(&self) -> u64 {
        super::underlay::dropped(self.sockets.0.as_fd())
            + super::underlay::dropped(self.sockets.1.as_fd())
    }

    /// Ends the thread and waits for it.
    pub fn stop(mut self) {
        self.stopping.store(true, Relaxed);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        if let Some(handle) = self.handle.take() {
            let _ = handle.join();
        }
    }
}

fn watch(epoll: &OwnedFd, fd: impl AsFd, token: u64) -> rustix::io::Result<()> {
    epoll::add(epoll, fd, epoll::EventData::new_u64(token), epoll::EventFlags::IN)
}

struct Thread {
    worker: Worker,
    outlet: LanAndUnderlay,
    commands: Receiver<ThreadCommand>,
    events: mpsc::Sender<WorkerEvent>,
    wake: Arc<OwnedFd>,
    alive_at: Arc<AtomicU64>,
    stopping: Arc<AtomicBool>,
    epoll: OwnedFd,
    spin: Spin,
    frame: Box<[u8]>,
    datagrams: ReceiveBuffers,
    /// When the queues are next looked after, ns on [`clock`].
    check_lan_at: u64,
}

/// The worker's way out: this thread's queues and sockets.
struct LanAndUnderlay {
    /// By [`PortIndex`].
    lan: Vec<Option<LanQueue>>,
    sockets: SocketPair,
}

impl Thread {
    fn run(mut self) {
        let mut ready = Vec::with_capacity(EPOLL_EVENTS);
        loop {
            let now = self.wait(&mut ready);
            self.alive_at.store(now.as_nanos(), Relaxed);
            if self.stopping.load(Relaxed) {
                return;
            }
            self.take_commands();
            for event in &ready {
                match event.data.u64() {
                    TOKEN_WAKE => {
                        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
                    }
                    TOKEN_LISTENER => self.receive_datagrams(SocketRole::Listener),
                    TOKEN_DIALER => self.receive_datagrams(SocketRole::Dialer),
                    port => self.receive_frames(PortIndex(port as u16)),
                }
            }
            let now = clock::now();
            if self.worker.poll_timeout().is_some_and(|at| at <= now) {
                self.worker.handle_timeout(now, &mut self.outlet);
                self.flush_lan();
            }
            self.check_lan(now.as_nanos());
            while let Some(event) = self.worker.poll_event() {
                // A control thread that is behind asks the statistics instead.
                let _ = self.events.try_send(event);
            }
        }
    }

    /// Waits for something to do: looks for it as long as that promises
    /// something, then sleeps. Returns the time.
    fn wait(&mut self, ready: &mut Vec<epoll::Event>) -> Instant {
        let start = clock::now();
        let wait_max = self
            .worker
            .poll_timeout()
            .map_or(WAIT_MAX, |at| at.saturating_since(start))
            .min(WAIT_MAX);
        let budget = self.spin.budget();
        if !budget.is_zero() && !wait_max.is_zero() {
            let until = start + budget.min(wait_max);
            loop {
                self.poll(ready, Duration::ZERO);
                let now = clock::now();
                if !ready.is_empty() || now >= until {
                    break;
                }
                std::hint::spin_loop();
            }
            if !ready.is_empty() {
                return clock::now();
            }
        }
        let asleep_at = clock::now();
        self.poll(ready, wait_max.saturating_sub(asleep_at.saturating_since(start)));
        let now = clock::now();
        self.spin.slept(now.saturating_since(asleep_at));
        now
    }

    /// The sockets are not in the epoll set: for each datagram that arrives while
    /// the thread is at work, `ep_poll_callback` would take its lock for nothing.
    fn poll(&self, ready: &mut Vec<epoll::Event>, timeout: Duration) {
        let timeout = Timespec {
            tv_sec: timeout.as_secs() as i64,
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        ready.clear();
        let SocketPair { listener, dialer } = &self.outlet.sockets;
        let mut sources = [
            PollFd::new(&self.epoll, PollFlags::IN),
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(dialer, PollFlags::IN),
        ];
        let _ = poll(&mut sources, Some(&timeout));
        let [lan, sockets @ ..] = sources.map(|source| !source.revents().is_empty());
        if lan {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(ready), Some(&now));
        }
        for (is_ready, token) in sockets.into_iter().zip([TOKEN_LISTENER, TOKEN_DIALER]) {
            if is_ready {
                let data = epoll::EventData::new_u64(token);
                ready.push(epoll::Event { flags: epoll::EventFlags::IN, data });
            }
        }
    }

    /// Carries out what the control thread wants.
    fn take_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                ThreadCommand::Worker(command) => {
                    self.worker.handle_command(clock::now(), command);
                }
                ThreadCommand::Attach { port, queue } => self.attach(port, queue),
                ThreadCommand::Detach { port } => self.detach(port),
            }
        }
    }

    fn attach(&mut self, port: PortIndex, queue: LanQueue) {
        self.detach(port);
        let index = usize::from(port.0);
        if self.outlet.lan.len() <= index {
            self.outlet.lan.resize_with(index + 1, || None);
        }
        if let Err(errno) = watch(&self.epoll, &queue, u64::from(port.0)) {
            tracing::error!(port = port.0, %errno, "cannot watch a queue of the LAN");
            return;
        }
        self.outlet.lan[index] = Some(queue);
    }

    fn detach(&mut self, port: PortIndex) {
        if let Some(queue) = self.outlet.lan.get_mut(usize::from(port.0)).and_then(Option::take) {
            let _ = epoll::delete(&self.epoll, &queue);
        }
    }

    fn receive_frames(&mut self, port: PortIndex) {
        let now = clock::now();
        let keeps_tags = self.worker.keeps_tags(port);
        for _ in 0..FRAMES_PER_TURN {
            let Some(Some(queue)) = self.outlet.lan.get_mut(usize::from(port.0)) else { return };
            match queue.receive(&mut self.frame) {
                Ok(Some(mut received)) => {
                    if keeps_tags {
                        received.inline_vlan();
                    }
                    let (vlan, offload) = (received.vlan, received.offload);
                    let frame = received.frame();
                    self.worker.handle_frame(now, port, vlan, offload, frame, &mut self.outlet);
                }
                Ok(None) => break,
                Err(error) => {
                    if !self.count_receive_error(port, &error) {
                        break;
                    }
                }
            }
        }
        self.worker.flush(now, &mut self.outlet);
    }

    /// Returns whether the queue may be read again.
    #[cold]
    fn count_receive_error(&mut self, port: PortIndex, error: &ReceiveError) -> bool {
        match error {
            ReceiveError::InvalidHeader(_) | ReceiveError::Inexpressible => {
                self.worker.count(Counter::LanOffload);
                true
            }
            ReceiveError::Length { .. } => {
                self.worker.count(Counter::LanLength);
                true
            }
            ReceiveError::Down => false,
            ReceiveError::Gone => {
                self.detach(port);
                false
            }
            ReceiveError::Kernel(_) => {
                self.worker.count(Counter::LanReceive);
                false
            }
        }
    }

    fn receive_datagrams(&mut self, role: SocketRole) {
        if !self.outlet.sockets.get(role).receive(&mut self.datagrams) {
            return;
        }
        // A session's keys are sent here before the peer can use them: having
        // the datagram, the command is there, too.
        self.take_commands();
        let now = clock::now();
        let Self { worker, outlet, datagrams, .. } = self;
        datagrams.drain(|path, datagram| worker.handle_datagram(now, path, datagram, outlet));
        worker.flush_to_lan(outlet);
        self.flush_lan();
    }

    /// Puts onto the LAN what the burst that ends here left waiting.
    fn flush_lan(&mut self) {
        let Self { worker, outlet, .. } = self;
        for queue in outlet.lan.iter_mut().flatten() {
            queue.flush(|error, frames| worker.undelivered(deliver_error(error), frames));
        }
    }

    /// Looks after the queues every [`LAN_CHECK_INTERVAL_NS`].
    fn check_lan(&mut self, now: u64) {
        if now < self.check_lan_at {
            return;
        }
        self.check_lan_at = now + LAN_CHECK_INTERVAL_NS;
        self.outlet.lan.iter_mut().flatten().for_each(LanQueue::check);
    }
}

impl Outlet for LanAndUnderlay {
    #[inline]
    fn transmit(
        &mut self,
        path: &Path,
        size: usize,
        datagrams: &[u8],
    ) -> Result<(), TransmitError> {
        self.sockets.get(path.socket).transmit(path, size, datagrams)
    }

    #[inline]
    fn deliver(
        &mut self,
        port: PortIndex,
        vlan: Option<VlanTag>,
        offload: &Offload,
        frame: &[u8],
    ) -> Result<(), DeliverError> {
        let Some(Some(queue)) = self.lan.get_mut(usize::from(port.0)) else {
            return Err(DeliverError::NotUp);
        };
        queue.transmit(vlan, offload, frame).map_err(deliver_error)
    }
}

fn deliver_error(error: lan::TransmitError) -> DeliverError {
    match error {
        lan::TransmitError::Full => DeliverError::Full,
        lan::TransmitError::InvalidOffload(_) | lan::TransmitError::TooShort { .. } => {
            DeliverError::InvalidOffload
        }
        lan::TransmitError::TooBig { .. } => DeliverError::TooBig,
        lan::TransmitError::Down | lan::TransmitError::Gone => DeliverError::NotUp,
        lan::TransmitError::Kernel(_) => DeliverError::Refused,
    }
}
