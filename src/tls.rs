//! Which implementation of TLS this program uses for every connection that it opens.

/// Chooses ring, once; to be called before the first connection. The libraries leave the choice to the program.
pub fn choose() {
    // An error says that it is chosen already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}
