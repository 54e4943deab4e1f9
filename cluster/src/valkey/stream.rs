//! A connection's bytes: TCP, with TLS or without, and a bound for each reply.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use redis::{ConnectionAddr, ConnectionInfo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::reply_meter::{ReplyMeter, TooLong};

/// What is sent is given up when the other end has not confirmed for so long that it came. A call that is cut off on its way would else be
/// carried out when the network is whole again, up to two minutes later: mail would come into the queue that its owner has delivered by then.
pub(super) const UNCONFIRMED_MAX: Duration = Duration::from_secs(1);
/// The longest reply to a call, in bytes: an item with the largest content that is shared, twice. Callers that want more raise it.
pub(super) static ANSWER_BYTES_MAX: AtomicUsize = AtomicUsize::new(8 * 1024 * 1024);
/// The longest message: one that says of a whole call's items that they are completed has some 50 KiB.
pub(super) static MESSAGE_BYTES_MAX: AtomicUsize = AtomicUsize::new(1024 * 1024);

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection that breaks when a reply is longer than its bound.
pub(super) struct Stream {
    transport: Box<dyn Transport>,
    meter: ReplyMeter,
    reply_bytes_max: &'static AtomicUsize,
}

impl Stream {
    /// Connects to the first address of a server that takes it. `ca`: PEM that its certificate must lead to, else the system's authorities.
    pub async fn open(info: &ConnectionInfo, ca: Option<&[u8]>, reply_bytes_max: &'static AtomicUsize) -> io::Result<Stream> {
        let transport: Box<dyn Transport> = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let (connector, name) = (connector(ca)?, ServerName::try_from(host.clone()).map_err(io::Error::other)?);
                Box::new(connector.connect(name, tcp(host, *port).await?).await?)
            }
            other => return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{other} is no address of a host"))),
        };
        Ok(Stream { transport, meter: ReplyMeter::new(), reply_bytes_max })
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    lookup_host((host, port)).await?.for_each(|address| drop(attempts.spawn(TcpStream::connect(address))));
    let mut made = Err(io::Error::new(io::ErrorKind::NotFound, "the host has no address"));
    while let Some(Ok(attempt)) = attempts.join_next().await {
        made = attempt;
        if made.is_ok() {
            break;
        }
    }
    let stream = made?;
    // A call that follows another at once must not wait until that is confirmed.
    stream.set_nodelay(true)?;
    let unconfirmed_ms = u32::try_from(UNCONFIRMED_MAX.as_millis()).expect("a second");
    rustix::net::sockopt::set_tcp_user_timeout(&stream, unconfirmed_ms)?;
    Ok(stream)
}

/// The authorities of a PEM file. Fails with a sentence that goes on after the file's name where there is none, or one that is not to be read.
pub(crate) fn roots_of(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("is no PEM of a certificate: {error:?}"))?;
        roots.add(certificate).map_err(|error| format!("has a certificate that cannot be read: {error}"))?;
    }
    if roots.is_empty() {
        return Err("has no certificate: it is to be a CA's, in PEM, from -----BEGIN CERTIFICATE----- on".to_owned());
    }
    Ok(roots)
}

fn connector(ca: Option<&[u8]>) -> io::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => roots = roots_of(pem).map_err(io::Error::other)?,
        // One that cannot be read is one authority less.
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    Ok(TlsConnector::from(std::sync::Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())))
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(context, buffer))?;
        let bytes_max = self.reply_bytes_max.load(Ordering::Relaxed);
        let read = self.meter.read(&buffer.filled()[before..], bytes_max);
        Poll::Ready(read.map_err(|TooLong| {
            buffer.set_filled(before);
            io::Error::new(io::ErrorKind::InvalidData, format!("it answers with more than the {bytes_max} bytes that an answer has"))
        }))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use redis::IntoConnectionInfo;
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use super::*;

    /// What waits for a confirmation of what went before is late by a round trip, or by the forty milliseconds that a confirmation may take.
    #[tokio::test]
    async fn a_connection_sends_at_once_and_gives_up_what_nobody_confirms() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (stream, _) = tokio::join!(tcp("127.0.0.1", listener.local_addr().unwrap().port()), listener.accept());
        let stream = stream.unwrap();
        assert!(stream.nodelay().unwrap());
        assert_eq!(rustix::net::sockopt::tcp_user_timeout(&stream).unwrap(), 1000);
    }

    #[tokio::test]
    async fn a_reply_that_is_too_long_ends_the_connection() {
        static BYTES_MAX: AtomicUsize = AtomicUsize::new(100);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let info = format!("redis://{}", listener.local_addr().unwrap()).into_connection_info().unwrap();
        let (stream, peer) = tokio::join!(Stream::open(&info, None, &BYTES_MAX), listener.accept());
        peer.unwrap().0.try_write(b"+OK\r\n$101\r\n").unwrap();
        let error = stream.unwrap().read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
