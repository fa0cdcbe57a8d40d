use futures::FutureExt;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tokio::sync::mpsc;
use tokio_rustls::{TlsConnector, client};

use super::*;
use crate::relay::{Relay, strangers::STRANGERS};

/// Takes every key for the right one: what a client checks is not tested here.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Lets in who says `good`, with a screen whose other end the test gets.
struct Keeper(mpsc::UnboundedSender<UnixStream>);

impl Doorkeeper for Keeper {
    fn admit(&self, request: RelayRequest) -> BoxFuture<'_, Result<Admitted, Refused>> {
        async move {
            if request.secret != "good" {
                return Err(Refused::new(Refusal::NoTicket, "no"));
            }
            let (screen, qemu) = UnixStream::pair().unwrap();
            self.0.send(qemu).unwrap();
            Ok(Admitted { screen, place: Box::new(()) })
        }
        .boxed()
    }
}

async fn relay() -> (String, mpsc::UnboundedReceiver<UnixStream>) {
    let relay = Relay::bind("127.0.0.1:0".parse().unwrap(), None, "").await.unwrap();
    let address = relay.console().address;
    let (sender, screens) = mpsc::unbounded_channel();
    tokio::spawn(relay.serve(Keeper(sender)));
    (address, screens)
}

async fn connect(address: &str, protocol: &[u8]) -> io::Result<client::TlsStream<TcpStream>> {
    let mut tls = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    tls.alpn_protocols = vec![protocol.to_vec()];
    let socket = TcpStream::connect(address).await?;
    TlsConnector::from(Arc::new(tls)).connect(ServerName::try_from("relay").unwrap(), socket).await
}

fn line(secret: &str) -> String {
    let request = RelayRequest {
        namespace: "school".into(),
        name: "anna".into(),
        desktop_uid: "uid".into(),
        secret: secret.into(),
    };
    serde_json::to_string(&request).unwrap() + "\n"
}

/// Sends `first` and returns the answer, with the connection.
async fn ask(address: &str, first: &[u8]) -> (RelayAnswer, client::TlsStream<TcpStream>) {
    let mut client = connect(address, PROTOCOL).await.unwrap();
    client.write_all(first).await.unwrap();
    client.flush().await.unwrap();
    let mut answer = vec![];
    while answer.last() != Some(&b'\n') {
        answer.push(client.read_u8().await.unwrap());
    }
    (serde_json::from_slice(&answer).unwrap(), client)
}

#[tokio::test]
async fn who_is_let_in_has_the_screen_until_either_side_ends() {
    let (address, mut screens) = relay().await;
    for screen_ends in [true, false] {
        let (answer, mut client) = ask(&address, line("good").as_bytes()).await;
        assert_eq!(answer, RelayAnswer::Granted);
        let mut qemu = screens.recv().await.unwrap();
        qemu.write_all(b"RFB 003.008\n").await.unwrap();
        let mut banner = [0; 12];
        client.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"RFB 003.008\n");
        client.write_all(b"key").await.unwrap();
        client.flush().await.unwrap();
        let mut key = [0; 3];
        qemu.read_exact(&mut key).await.unwrap();
        assert_eq!(&key, b"key");
        if screen_ends {
            drop(qemu);
            assert_eq!(client.read(&mut key).await.unwrap(), 0);
        } else {
            drop(client);
            assert_eq!(qemu.read(&mut key).await.unwrap(), 0);
        }
    }
}

#[tokio::test]
async fn what_is_no_request_is_told_so_and_ended() {
    let (address, _screens) = relay().await;
    let (answer, mut client) = ask(&address, line("bad").as_bytes()).await;
    assert_eq!(answer, RelayAnswer::Refused { reason: Refusal::NoTicket, message: "no".into() });
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    let long = vec![b'x'; LONGEST_LINE + 1];
    let followed = line("good") + "more";
    let firsts: [&[u8]; 5] = [b"GET / HTTP/1.1\r\n", b"\n", b"\xff\x00\n", &long, followed.as_bytes()];
    for first in firsts {
        let (answer, _) = ask(&address, first).await;
        assert!(matches!(answer, RelayAnswer::Refused { reason: Refusal::BadRequest, .. }), "{answer:?}");
    }
}

#[tokio::test]
async fn other_protocols_are_ended_before_they_say_anything() {
    let (address, _screens) = relay().await;
    assert!(connect(&address, b"h2").await.is_err());
    let mut plain = TcpStream::connect(&address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = vec![];
    // An alert of TLS, and the end.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() <= 7, "{answer:?}");
}

#[tokio::test]
async fn strangers_who_say_nothing_keep_nobody_out() {
    let (address, mut screens) = relay().await;
    let (answer, mut looking) = ask(&address, line("good").as_bytes()).await;
    assert_eq!(answer, RelayAnswer::Granted);
    let mut qemu = screens.recv().await.unwrap();
    let mut idle = vec![];
    for number in 0..STRANGERS * 2 {
        if number % 8 == 0 {
            // Some come as far as TLS.
            idle.push(tokio::spawn(connect_and_keep(address.clone())));
        } else {
            idle.push(tokio::spawn(keep(TcpStream::connect(address.clone()).await.unwrap())));
        }
    }
    let (answer, _client) = ask(&address, line("good").as_bytes()).await;
    assert_eq!(answer, RelayAnswer::Granted);
    // Who looked before looks on.
    qemu.write_all(b"pixel").await.unwrap();
    let mut pixel = [0; 5];
    looking.read_exact(&mut pixel).await.unwrap();
    assert_eq!(&pixel, b"pixel");
    for task in idle {
        task.abort();
    }
}

async fn keep(socket: TcpStream) {
    let _socket = socket;
    std::future::pending::<()>().await;
}

async fn connect_and_keep(address: String) {
    let _client = connect(&address, PROTOCOL).await;
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn who_does_not_finish_his_line_is_ended() {
    let (address, _screens) = relay().await;
    let mut client = connect(&address, PROTOCOL).await.unwrap();
    client.write_all(b"{").await.unwrap();
    client.flush().await.unwrap();
    assert!(!matches!(client.read(&mut [0; 1]).await, Ok(1..)), "not a word");
}
