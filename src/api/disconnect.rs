//! Noticing that a client has gone while its answer is still being made.
//!
//! The HTTP library runs a handler to its end whatever the client does. So each connection's socket is duplicated
//! when it is accepted, and a handler that takes long watches its duplicate: reading nothing from it, only looking
//! whether the other side has closed it.

use std::any::Any;
use std::net::TcpStream;
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
struct Peer(Arc<TcpStream>);

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
    let watched = request.conn_data::<Peer>().cloned();
    let watched = watched.and_then(|peer| peer.0.try_clone().ok());
    // The socket is served without blocking, and so is its duplicate.
    let watched = watched.and_then(|socket| tokio::net::TcpStream::from_std(socket).ok());
    let Some(socket) = watched else {
        return std::future::pending().await;
    };
    loop {
        match socket.peek(&mut [0]).await {
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}
