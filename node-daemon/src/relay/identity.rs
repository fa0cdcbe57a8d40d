//! Who the relay is: a key made at each start and kept in memory alone.
//!
//! It is shown as a raw public key (RFC 7250). The status of each desktop here names it, and only this
//! node's token may write that: the API is the anchor, so there is no authority and nothing to renew.

use std::{io, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use gpudesk_crds::relay::PROTOCOL;
use ring::{rand::SystemRandom, signature::Ed25519KeyPair};
use rustls::{
    ServerConfig,
    crypto::ring::{default_provider, sign::any_eddsa_type},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage},
    sign::CertifiedKey,
    version::TLS13,
};

/// A key, and how TLS is spoken with it.
pub struct Identity {
    public_key: String,
    tls: Arc<ServerConfig>,
}

impl Identity {
    /// Makes a key.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn new() -> io::Result<Self> {
        let pair = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
            .map_err(|_| io::Error::other("the system gives no random numbers"))?;
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(pair.as_ref())).map_err(io::Error::other)?;
        let public = key.public_key().ok_or_else(|| io::Error::other("the key has no public half"))?;
        let public = public.as_ref().to_vec();
        let public_key = STANDARD.encode(&public);
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(public)], key));
        let mut tls = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
        tls.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Each connection proves the key: there is nothing to take up again.
        tls.session_storage = Arc::new(NoServerSessionStorage {});
        tls.send_tls13_tickets = 0;
        Ok(Self { public_key, tls: Arc::new(tls) })
    }

    /// The public half, as the status has it: base64 of its `SubjectPublicKeyInfo`.
    pub fn public_key(&self) -> &str {
        &self.public_key
    }

    /// How TLS is spoken.
    pub fn tls(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.tls)
    }
}
