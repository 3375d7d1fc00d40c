//! HTTP/1.1 as far as a client needs it that looks at when each piece of an answer comes: one request a connection,
//! as from clients that know nothing of each other.

use std::io;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// The server under load.
pub struct Target {
    /// HOST:PORT.
    pub address: String,
    pub key: Option<String>,
}

/// HOST:PORT of `http://HOST:PORT`.
pub fn address(url: &str) -> String {
    let address = url
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'));
    let address = address.filter(|address| address.contains(':') && !address.contains('/'));
    address
        .unwrap_or_else(|| panic!("{url:?} is not http://HOST:PORT"))
        .to_owned()
}

/// An answer whose body is still to come.
pub struct Answer {
    pub status: u16,
    pub says_when_to_retry: bool,
    stream: BufReader<TcpStream>,
    body: Body,
}

enum Body {
    /// So many bytes in one piece.
    Whole(usize),
    Chunks,
    Read,
}

impl Target {
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A request as it goes over the wire.
    pub fn request(&self, method: &str, path: &str, body: &str) -> String {
        let key = self.key.as_ref();
        let key = key.map_or(String::new(), |key| {
            format!("authorization: Bearer {key}\r\n")
        });
        format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{key}\r\n{body}",
            self.address,
            body.len()
        )
    }

    /// Sends a request and reads the head of its answer.
    pub async fn send(&self, method: &str, path: &str, body: &str) -> io::Result<Answer> {
        let mut stream = self.connect().await?;
        let request = self.request(method, path, body);
        stream.write_all(request.as_bytes()).await?;
        Answer::read_head(stream).await
    }

    /// The status and the text of an address.
    pub async fn get(&self, path: &str) -> io::Result<(u16, String)> {
        let mut answer = self.send("GET", path, "").await?;
        let mut text = Vec::new();
        while let Some(piece) = answer.piece().await? {
            text.extend(piece);
        }
        Ok((answer.status, String::from_utf8_lossy(&text).into_owned()))
    }
}

impl Answer {
    /// Reads an answer's head.
    pub async fn read_head(stream: TcpStream) -> io::Result<Self> {
        let mut stream = BufReader::new(stream);
        let first = line(&mut stream).await?;
        let status = first
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        let mut answer = Answer {
            status: status.ok_or_else(|| malformed("a status"))?,
            says_when_to_retry: false,
            stream,
            body: Body::Read,
        };
        loop {
            let line = line(&mut answer.stream).await?.to_lowercase();
            let Some((name, value)) = line.split_once(':') else {
                return Ok(answer);
            };
            let value = value.trim();
            match name {
                "retry-after" => answer.says_when_to_retry = value.parse::<u64>().is_ok(),
                "content-length" => {
                    let length = value.parse().map_err(|_| malformed("a length"))?;
                    answer.body = Body::Whole(length);
                }
                "transfer-encoding" if value == "chunked" => answer.body = Body::Chunks,
                _ => {}
            }
        }
    }

    /// The body's next piece; none at its end. An end before that is an error.
    pub async fn piece(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.body {
            Body::Read => Ok(None),
            Body::Whole(length) => {
                self.body = Body::Read;
                self.exactly(length).await.map(Some)
            }
            Body::Chunks => {
                let size = line(&mut self.stream).await?;
                let size = usize::from_str_radix(&size, 16).map_err(|_| malformed("a size"))?;
                let piece = self.exactly(size).await?;
                line(&mut self.stream).await?;
                if size == 0 {
                    self.body = Body::Read;
                    return Ok(None);
                }
                Ok(Some(piece))
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).await?;
        Ok(bytes)
    }
}

/// A line without its end.
async fn line(stream: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match stream.read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} was expected"))
}
