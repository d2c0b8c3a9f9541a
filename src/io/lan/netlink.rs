//! The host's interfaces by rtnetlink: read, changed, watched.
//!
//! Notifications only say *which* interface changed; its state is always
//! fetched anew. So a lost or late one can't leave a wrong picture behind.
#![allow(clippy::disallowed_methods)]

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream::BoxStream};
use rtnetlink::{
    Handle, LinkMessageBuilder, LinkUnspec, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{
            AfSpecInet6, AfSpecUnspec, BridgePortState, In6AddrGenMode, InfoBridge, InfoBridgePort,
            InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
            LinkMessage,
        },
    },
};
use tokio::task::JoinHandle;

use super::links::{Link, PortState};
use crate::wire::ethernet::MacAddr;

type Notices = BoxStream<'static, Notice>;

/// Requests about interfaces; cheap to clone.
#[derive(Clone)]
pub(super) struct Interfaces {
    handle: Handle,
}

impl Interfaces {
    /// Every interface of the namespace.
    pub(super) async fn all(&self) -> Result<Vec<Link>, NetlinkError> {
        let links = self.handle.link().get().execute();
        links
            .try_filter_map(async |message| Ok(link_of(&message)))
            .try_collect()
            .await
            .map_err(|source| NetlinkError::new("list the interfaces", source))
    }

    /// One interface; `None` where it does not exist.
    pub(super) async fn get(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let message = self.message(index).await?;
        Ok(message.as_ref().and_then(link_of))
    }

    /// The interface with this name; `None` where it does not exist.
    pub(super) async fn get_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(message) => Ok(message.as_ref().and_then(link_of)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(source) => Err(NetlinkError::new("look up an interface", source)),
        }
    }

    /// Frames for user space that an interface's queue had no room for.
    pub(super) async fn transmit_drops(&self, index: u32) -> Result<Option<u64>, NetlinkError> {
        let message = self.message(index).await?;
        let attributes = message.into_iter().flat_map(|message| message.attributes);
        Ok(attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Stats64(statistics) => Some(statistics.tx_dropped),
            _ => None,
        }))
    }

    /// Gives a new TAP its address and queue length, and no IPv6 address of
    /// its own: it is a port, not a host.
    pub(super) async fn prepare_port(
        &self,
        index: u32,
        mac: MacAddr,
        queue_length: u32,
    ) -> Result<(), NetlinkError> {
        self.prepare(index, mac, queue_length).await?;
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let specific = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        // Fails where IPv6 is switched off: then there is no address to keep away either.
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(specific).build();
        let _ = self.handle.link().set_port(message).execute().await;
        Ok(())
    }

    /// Gives a new TAP its address and queue length (frames).
    pub(super) async fn prepare(
        &self,
        index: u32,
        mac: MacAddr,
        queue_length: u32,
    ) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index);
        let message = message.address(mac.0.to_vec()).txqueuelen(queue_length);
        self.change("set up the TAP", message).await
    }

    pub(super) async fn set_mac(&self, index: u32, mac: MacAddr) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).address(mac.0.to_vec());
        self.change("set an interface's MAC address", message).await
    }

    /// `mtu` in bytes.
    pub(super) async fn set_mtu(&self, index: u32, mtu: u32) -> Result<(), NetlinkError> {
        self.change("set an interface's MTU", LinkUnspec::new_with_index(index).mtu(mtu)).await
    }

    pub(super) async fn set_up(&self, index: u32) -> Result<(), NetlinkError> {
        self.change("bring the TAP up", LinkUnspec::new_with_index(index).up()).await
    }

    pub(super) async fn enslave(&self, index: u32, bridge: u32) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).controller(bridge);
        self.change("put the TAP into the bridge", message).await
    }

    /// Removes an interface; one that is gone already is fine.
    pub(super) async fn remove(&self, index: u32) -> Result<(), NetlinkError> {
        match self.handle.link().del(index).execute().await {
            Err(error) if !is_missing(&error) => Err(NetlinkError::new("remove the TAP", error)),
            _ => Ok(()),
        }
    }

    async fn change(
        &self,
        action: &'static str,
        message: LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.link().set_port(message.build());
        request.execute().await.map_err(|source| NetlinkError::new(action, source))
    }

    async fn message(&self, index: u32) -> Result<Option<LinkMessage>, NetlinkError> {
        let mut links = self.handle.link().get().match_index(index).execute();
        match links.try_next().await {
            Err(error) if !is_missing(&error) => {
                Err(NetlinkError::new("look up an interface", error))
            }
            found => Ok(found.ok().flatten()),
        }
    }
}

/// The notifications of RTNLGRP_LINK, and the tasks that serve both sockets.
pub(super) struct Monitor {
    notices: Notices,
    tasks: [JoinHandle<()>; 2],
}

impl Monitor {
    /// Opens both sockets in the calling thread's network namespace.
    pub(super) fn open() -> Result<(Interfaces, Self), NetlinkError> {
        let (requests, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        let groups = [MulticastGroup::Link];
        let (monitor, _, notices) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Socket)?;
        let tasks = [tokio::spawn(requests), tokio::spawn(monitor)];
        let notices = notices.map(|(message, _)| notice_of(&message)).boxed();
        Ok((Interfaces { handle }, Self { notices, tasks }))
    }

    /// Waits for the next notification; `None` once the socket is dead.
    pub(super) async fn next(&mut self) -> Option<Notice> {
        self.notices.next().await
    }

    /// A notification that is here already.
    pub(super) fn try_next(&mut self) -> Option<Notice> {
        self.notices.next().now_or_never().flatten()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// What a notification says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Notice {
    /// This interface changed, appeared or went.
    Changed(u32),
    /// Notifications were lost: look at everything.
    Lost,
}

/// Why a netlink request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("can't open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("can't {action}: {}", reason(source))]
    Request {
        /// What was to be done.
        action: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
}

impl NetlinkError {
    const fn new(action: &'static str, source: rtnetlink::Error) -> Self {
        Self::Request { action, source }
    }
}

fn reason(error: &rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    }
}

fn is_missing(error: &rtnetlink::Error) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message)
        if message.raw_code() == -libc::ENODEV)
}

fn notice_of(message: &NetlinkMessage<RouteNetlinkMessage>) -> Notice {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link),
        ) => Notice::Changed(link.header.index),
        _ => Notice::Lost,
    }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let header = &message.header;
    let mut link = Link {
        index: header.index,
        name: String::new(),
        mtu: 0,
        mac: None,
        is_ethernet: header.link_layer_type == LinkLayerType::Ether,
        is_up: header.flags.contains(LinkFlags::Up),
        has_carrier: header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        controller: None,
        port_state: None,
        bridge: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.as_slice().try_into().ok().map(MacAddr);
            }
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                infos.iter().for_each(|info| apply_info(&mut link, info));
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

fn apply_info(link: &mut Link, info: &LinkInfo) {
    match info {
        LinkInfo::Kind(InfoKind::Bridge) => {
            link.bridge.get_or_insert_default();
        }
        LinkInfo::Data(InfoData::Bridge(attributes)) => {
            let bridge = link.bridge.get_or_insert_default();
            for attribute in attributes {
                match attribute {
                    InfoBridge::GroupFwdMask(mask) => bridge.group_fwd_mask = *mask,
                    InfoBridge::VlanFiltering(on) => bridge.filters_vlans = *on,
                    _ => {}
                }
            }
        }
        LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
            link.port_state = attributes.iter().find_map(|attribute| match attribute {
                InfoBridgePort::State(state) => port_state_of(*state),
                _ => None,
            });
        }
        _ => {}
    }
}

const fn port_state_of(state: BridgePortState) -> Option<PortState> {
    match state {
        BridgePortState::Disabled => Some(PortState::Disabled),
        BridgePortState::Listening => Some(PortState::Listening),
        BridgePortState::Learning => Some(PortState::Learning),
        BridgePortState::Forwarding => Some(PortState::Forwarding),
        BridgePortState::Blocking => Some(PortState::Blocking),
        _ => None,
    }
}
