//! One public key as OpenSSH writes it, read strictly: the types that sshd should accept for breakglass, and no certificate.

use base64ct::{Base64, Base64Unpadded, Encoding};
use sha2::{Digest, Sha256};

/// Below this an RSA key is refused.
const RSA_BITS: usize = 3072;

/// A key that may be authorised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PublicKey {
    algorithm: &'static str,
    blob: Vec<u8>,
}

/// What each type's blob holds after its name.
const TYPES: [(&str, usize); 7] = [
    ("ssh-ed25519", 1),
    ("ecdsa-sha2-nistp256", 2),
    ("ecdsa-sha2-nistp384", 2),
    ("ecdsa-sha2-nistp521", 2),
    ("sk-ssh-ed25519@openssh.com", 2),
    ("sk-ecdsa-sha2-nistp256@openssh.com", 3),
    ("ssh-rsa", 2),
];

impl PublicKey {
    /// Reads `TYPE BASE64 [COMMENT]`.
    pub(super) fn read(line: &str) -> Result<Self, String> {
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(body)) = (words.next(), words.next()) else { return Err("it is not a public key".to_owned()) };
        if name.contains("-cert-") {
            return Err("it is a certificate, and sshd would decide by its signer".to_owned());
        }
        if name == "ssh-dss" {
            return Err("it is a DSA key, which is broken".to_owned());
        }
        let (algorithm, parts) = TYPES.into_iter().find(|(n, _)| *n == name).ok_or("its type is none that is known here")?;
        let blob = Base64::decode_vec(body).map_err(|_| "its base64 is damaged")?;
        let damaged = "its bytes are not those of its type";
        let (said, mut rest) = string(&blob).ok_or(damaged)?;
        if said != name.as_bytes() {
            return Err(damaged.to_owned());
        }
        let mut fields = Vec::new();
        for _ in 0..parts {
            let (field, after) = string(rest).ok_or(damaged)?;
            fields.push(field);
            rest = after;
        }
        let good = rest.is_empty()
            && match (algorithm, fields.as_slice()) {
                ("ssh-ed25519", [key]) | ("sk-ssh-ed25519@openssh.com", [key, _]) => key.len() == 32,
                ("ssh-rsa", [_, modulus]) => {
                    let bits = bits(modulus);
                    if bits < RSA_BITS {
                        return Err(format!("it is an RSA key of {bits} bits, and {RSA_BITS} are the least"));
                    }
                    true
                }
                (_, [curve, point, ..]) => {
                    algorithm.contains(std::str::from_utf8(curve).unwrap_or("?")) && curve.starts_with(b"nistp") && point.len() > 64
                }
                _ => false,
            };
        if good { Ok(Self { algorithm, blob }) } else { Err(damaged.to_owned()) }
    }

    /// `TYPE BASE64`.
    pub(super) fn line(&self) -> String {
        format!("{} {}", self.algorithm, Base64::encode_string(&self.blob))
    }

    /// `SHA256:…`, as `ssh-keygen -l` says it.
    pub(super) fn fingerprint(&self) -> String {
        format!("SHA256:{}", Base64Unpadded::encode_string(&Sha256::digest(&self.blob)))
    }
}

fn string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// The length of an SSH mpint in bits.
fn bits(number: &[u8]) -> usize {
    let start = number.iter().position(|b| *b != 0).unwrap_or(number.len());
    let significant = number.get(start..).unwrap_or_default();
    significant.first().map_or(0, |first| significant.len() * 8 - first.leading_zeros() as usize)
}
