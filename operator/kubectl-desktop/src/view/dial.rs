//! The way to the relay of a node: TCP to its address, or a port-forward through the API server; over
//! either, TLS to the one key that the Desktop names.

use std::{io, sync::Arc, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use gpudesk_crds::relay::{LONGEST_LINE, PROTOCOL, RelayAnswer, RelayRequest};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt, api::ListParams};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, ring::default_provider, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{run::ViewError, target::Target};

/// Time for a TCP connection, and for each step after it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Time for the relay's answer: it may wait for its own watch, and for libvirt.
const DECISION: Duration = Duration::from_secs(25);
/// Pods of the node daemon, as the chart labels them.
const PODS: &str = "app.kubernetes.io/name=gpudesk-node-daemon";
/// Name of the relay's port in them.
const PORT: &str = "relay";

/// Bytes either way.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection to a relay that proved its key.
pub type Connection = TlsStream<Box<dyn Stream>>;

/// Which way to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Via {
    /// The address first; where it does not answer, a port-forward.
    #[default]
    Auto,
    /// The address that the node announces.
    Direct,
    /// A port-forward through the API server to the pod of the node daemon, which cluster admins may.
    PortForward,
}

/// Connects to the relay of `target`. `namespace` is where the pods of the node daemons are.
///
/// # Errors
/// When neither way leads there, or when what answers there has another key.
pub async fn connect(
    client: &Client,
    namespace: &str,
    target: &Target,
    via: Via,
) -> Result<Connection, ViewError> {
    let bytes = match via {
        Via::Direct => direct(target).await.map_err(|why| unreachable(target, &why))?,
        Via::PortForward => {
            forward(client, namespace, target).await.map_err(|why| unreachable(target, &why))?
        }
        Via::Auto => match direct(target).await {
            Ok(bytes) => bytes,
            Err(no) => match forward(client, namespace, target).await {
                Ok(bytes) => bytes,
                Err(neither) => return Err(unreachable(target, &format!("{no}; {neither}"))),
            },
        },
    };
    secure(bytes, target).await
}

fn unreachable(target: &Target, why: &str) -> ViewError {
    ViewError::Unreachable(format!("node {} is not reached: {why}", target.node))
}

async fn direct(target: &Target) -> Result<Box<dyn Stream>, String> {
    let address = &target.relay.address;
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(Ok(socket)) => {
            // A mouse that waits for more of its movements is no fun; without, it still works.
            let _ = socket.set_nodelay(true);
            Ok(Box::new(socket))
        }
        Ok(Err(error)) => Err(format!("its relay at {address}: {error}")),
        Err(_) => Err(format!("its relay at {address} does not answer within {} s", PATIENCE.as_secs())),
    }
}

async fn forward(client: &Client, namespace: &str, target: &Target) -> Result<Box<dyn Stream>, String> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(PODS).fields(&format!("spec.nodeName={}", target.node));
    let said = |doing: &str, error: kube::Error| match error {
        kube::Error::Api(status) => format!("{doing}: {}", status.message),
        error => format!("{doing}: {error}"),
    };
    let found = pods.list(&params).await.map_err(|error| said("a port-forward", error))?;
    let running = found
        .items
        .into_iter()
        .find(|pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running")));
    let pod = running.ok_or_else(|| {
        format!("a port-forward: no pod of the node daemon runs there in namespace {namespace}")
    })?;
    let ports = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let port = ports.into_iter().find(|port| port.name.as_deref() == Some(PORT));
    let port = port.and_then(|port| u16::try_from(port.container_port).ok());
    let port =
        port.ok_or_else(|| format!("a port-forward: pod {} has no port named {PORT}", pod.name_any()))?;
    let mut forwarder =
        pods.portforward(&pod.name_any(), &[port]).await.map_err(|error| said("a port-forward", error))?;
    let stream = forwarder.take_stream(port).ok_or("a port-forward: no stream")?;
    // It lives as long as its stream.
    tokio::spawn(forwarder.join());
    Ok(Box::new(stream))
}

/// TLS with the key of `target`, and no other.
///
/// # Errors
/// [`ViewError::WrongKey`] when it has another.
pub async fn secure(bytes: Box<dyn Stream>, target: &Target) -> Result<Connection, ViewError> {
    let failed = |error: String| ViewError::Failed(format!("node {}: {error}", target.node));
    let key = STANDARD
        .decode(&target.relay.public_key)
        .map_err(|error| failed(format!("relay.publicKey: {error}")))?;
    let provider = Arc::new(default_provider());
    let pinned = Pinned { key, algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|error| failed(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(pinned))
        .with_no_client_auth();
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    // The key is what counts, and the name is not sent.
    let name = ServerName::try_from("relay").map_err(|error| failed(error.to_string()))?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(name, bytes);
    match timeout(PATIENCE, handshake).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) if is_wrong_key(&error) => Err(ViewError::WrongKey(format!(
            "what answers at the relay of node {} ({}) has another key than the Desktop names: the node daemon has just \
             been started again, or somebody stands in between. Nothing was said to it",
            target.node, target.relay.address
        ))),
        Ok(Err(error)) => Err(ViewError::Unreachable(format!(
            "node {}: what answers at its relay {} speaks otherwise: {error}",
            target.node, target.relay.address
        ))),
        Err(_) => Err(ViewError::Unreachable(format!(
            "node {}: its relay {} takes the connection and says nothing",
            target.node, target.relay.address
        ))),
    }
}

fn is_wrong_key(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(cause, Some(rustls::Error::InvalidCertificate(_) | rustls::Error::PeerIncompatible(_)))
}

/// Shows the secret, and returns the connection once the screen is open behind it.
///
/// # Errors
/// [`ViewError::Refused`] with the relay's reason.
pub async fn enter(
    mut connection: Connection,
    target: &Target,
    secret: &str,
) -> Result<Connection, ViewError> {
    let request = RelayRequest {
        namespace: target.namespace.clone(),
        name: target.name.clone(),
        desktop_uid: target.uid.clone(),
        secret: secret.to_owned(),
    };
    let answer = timeout(DECISION, async {
        let mut line = serde_json::to_vec(&request)?;
        line.push(b'\n');
        connection.write_all(&line).await?;
        connection.flush().await?;
        let mut answer = vec![];
        // Byte by byte: what follows is the screen's.
        while answer.last() != Some(&b'\n') && answer.len() < LONGEST_LINE {
            answer.push(connection.read_u8().await?);
        }
        io::Result::Ok(serde_json::from_slice::<RelayAnswer>(&answer)?)
    })
    .await;
    let node = &target.node;
    match answer {
        Ok(Ok(RelayAnswer::Granted)) => Ok(connection),
        Ok(Ok(RelayAnswer::Refused { reason, message })) => {
            Err(ViewError::Refused(reason, format!("node {node}: {message}")))
        }
        Ok(Err(error)) => {
            Err(ViewError::Unreachable(format!("node {node}: its relay gave no answer: {error}")))
        }
        Err(_) => Err(ViewError::Unreachable(format!(
            "node {node}: its relay gave no answer within {} s",
            DECISION.as_secs()
        ))),
    }
}

/// Takes one raw public key for right, and no certificate.
#[derive(Debug)]
struct Pinned {
    key: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.as_ref() == self.key {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
