//! Answers made of server-sent events, for whatever is told as it happens.

use actix_web::HttpResponse;
use actix_web::web::Bytes;
use tokio::sync::mpsc;

/// Answers with the events that come out of `receiver`, until its senders are gone. When the client is gone, sending
/// fails.
pub fn respond(receiver: mpsc::Receiver<Bytes>) -> HttpResponse {
    let body = futures_util::stream::unfold(receiver, |mut receiver| async {
        let event = receiver.recv().await?;
        Some((Ok::<Bytes, actix_web::Error>(event), receiver))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .insert_header(("cache-control", "no-cache"))
        // Asks proxies not to collect events.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(body)
}
