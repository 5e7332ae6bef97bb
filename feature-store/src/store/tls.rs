//! What the remote stores share about TLS.

use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::{Result, StoreError};

/// The drivers take the process's provider, and panic where several are compiled in and none is
/// chosen. One that the process has chosen already stays.
pub(super) fn install_provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// The bytes of a PEM file.
pub(super) fn read_pem(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| StoreError::Refused(format!("can't read {}: {error}", path.display())))
}

/// A client that trusts the certificates in `ca_certificate` and no others.
pub(super) fn client_config(ca_certificate: &Path) -> Result<Arc<ClientConfig>> {
    install_provider();
    let refused = |error: &dyn Error| StoreError::Refused(format!("{}: {error}", ca_certificate.display()));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&read_pem(ca_certificate)?) {
        roots.add(certificate.map_err(|error| refused(&error))?).map_err(|error| refused(&error))?;
    }
    if roots.is_empty() {
        return Err(StoreError::Refused(format!("{} holds no certificate", ca_certificate.display())));
    }
    Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

/// What TLS found wrong, wherever in the chain of causes it is.
pub(super) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>() {
            // Its `source` is the source of what it wraps.
            Some(io) => io.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// What to do about it.
pub(super) fn refused(address: &str, error: &rustls::Error) -> StoreError {
    let advice = match error {
        rustls::Error::InvalidCertificate(_) => {
            "check ca_certificate, and that the server's certificate names its address"
        }
        rustls::Error::InvalidMessage(_) => "check that this port speaks TLS",
        _ => "check the TLS settings of both sides",
    };
    StoreError::Refused(format!("no TLS connection to {address}: {error}; {advice}"))
}
