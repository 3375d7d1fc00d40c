//! Noticing that a client has gone while its answer is still being made.
//!
//! The HTTP library runs a handler to its end whatever the client does. So each connection's socket is duplicated
//! when it is accepted, and a handler that takes long watches its duplicate: reading nothing from it, only looking
//! whether the other side has closed it.

use std::any::Any;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream as ServedStream;

/// How often to look again at a connection on which the next request waits already.
const AGAIN: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Debug, Clone)]
pub struct Peer(Arc<TcpStream>);

impl Peer {
    /// Ends the connection, whatever either side still has to say.
    pub fn close(&self) {
        // An error says that it has ended already.
        let _ = self.0.shutdown(Shutdown::Both);
    }

    /// Whether the other side will send nothing more, however much of what it has sent was not read yet.
    #[cfg(target_os = "linux")]
    fn has_left(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let wanted = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut sockets = [PollFd::new(&*self.0, wanted)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut sockets, Some(&at_once)).is_ok() && sockets[0].revents().intersects(wanted)
    }

    /// Other systems tell only once everything was read.
    #[cfg(not(target_os = "linux"))]
    fn has_left(&self) -> bool {
        false
    }
}

/// The other end of the connection that a request came on, where it can be had.
pub fn peer(request: &HttpRequest) -> Option<Peer> {
    request.conn_data::<Peer>().cloned()
}

/// Closes the connection of `request` some time after its answer: for a request that was answered before its body
/// was there, whose rest nobody will read.
pub fn close_after(request: &HttpRequest, patience: Duration) {
    if let Some(peer) = peer(request) {
        actix_web::rt::spawn(async move {
            tokio::time::sleep(patience).await;
            peer.close();
        });
    }
}

/// For `HttpServer::on_connect`: keeps a duplicate of the connection's socket.
pub fn remember(connection: &dyn Any, data: &mut Extensions) {
    let duplicate = connection
        .downcast_ref::<ServedStream>()
        .and_then(|stream| stream.as_fd().try_clone_to_owned().ok());
    if let Some(socket) = duplicate {
        data.insert(Peer(Arc::new(TcpStream::from(socket))));
    }
}

/// Resolves once the client of `request` has closed its connection; never where that cannot be seen.
pub async fn gone(request: &HttpRequest) {
    let peer = peer(request);
    let socket = peer.as_ref().and_then(|peer| peer.0.try_clone().ok());
    // The socket is served without blocking, and so is its duplicate.
    let socket = socket.and_then(|socket| tokio::net::TcpStream::from_std(socket).ok());
    let (Some(peer), Some(socket)) = (peer, socket) else {
        return std::future::pending().await;
    };
    loop {
        match socket.peek(&mut [0]).await {
            Ok(0) | Err(_) => return,
            // The next request waits there already, and hides the connection's end from a look at its beginning.
            Ok(_) if peer.has_left() => return,
            Ok(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
