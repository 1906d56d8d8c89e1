//! A SCRAM-SHA-256 client (RFC 5802, RFC 7677) of the tests' own, so that a mistake in pgsidecar's isn't made twice.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// The client's side of one exchange, without channel binding unless told.
#[derive(Debug)]
pub struct ScramClient {
    password: String,
    /// The GS2 header, base64-encoded with the binding data behind it in `c=`.
    gs2: String,
    binding: Vec<u8>,
    first_bare: String,
    nonce: String,
    server_signature: Vec<u8>,
}

impl ScramClient {
    /// `gs2` is `n,,`, `y,,` or `p=tls-server-end-point,,`; `binding` the certificate's hash for the last.
    pub fn new(password: &str, gs2: &str, binding: &[u8]) -> Self {
        let mut random = [0; 18];
        getrandom::fill(&mut random).unwrap();
        let nonce = BASE64.encode(random);
        Self {
            password: password.to_owned(),
            gs2: gs2.to_owned(),
            binding: binding.to_vec(),
            first_bare: format!("n=,r={nonce}"),
            nonce,
            server_signature: Vec::new(),
        }
    }

    /// The client-first-message.
    pub fn first(&self) -> String {
        format!("{}{}", self.gs2, self.first_bare)
    }

    /// The client-final-message that answers the server-first-message.
    pub fn last(&mut self, server_first: &str) -> String {
        let attribute = |name: &str| {
            let found = server_first.split(',').find_map(|part| part.strip_prefix(name));
            found.unwrap_or_else(|| panic!("{name} is missing in {server_first}"))
        };
        let (nonce, salt) = (attribute("r="), BASE64.decode(attribute("s=")).unwrap());
        assert!(
            nonce.starts_with(&self.nonce) && nonce.len() > self.nonce.len(),
            "the server adds to our nonce"
        );
        let salted = salted_password(self.password.as_bytes(), &salt, attribute("i=").parse().unwrap());
        let bound = BASE64.encode([self.gs2.as_bytes(), &self.binding].concat());
        let without_proof = format!("c={bound},r={nonce}");
        let signed = format!("{},{server_first},{without_proof}", self.first_bare);
        let client_key = hmac(&salted, b"Client Key");
        let signature = hmac(&Sha256::digest(&client_key), signed.as_bytes());
        let proof: Vec<u8> = client_key
            .iter()
            .zip(&signature)
            .map(|(key, byte)| key ^ byte)
            .collect();
        self.server_signature = hmac(&hmac(&salted, b"Server Key"), signed.as_bytes());
        format!("{without_proof},p={}", BASE64.encode(proof))
    }

    /// Whether the server-final-message proves that the server knows the verifier.
    pub fn accepts(&self, server_final: &str) -> bool {
        server_final
            .strip_prefix("v=")
            .and_then(|text| BASE64.decode(text).ok())
            .as_ref()
            == Some(&self.server_signature)
    }
}

fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

/// PBKDF2 with one block, as SCRAM's `Hi`.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
    let keyed = Hmac::<Sha256>::new_from_slice(password).expect("any length is a key");
    let round = |data: &[&[u8]]| {
        let mut mac = keyed.clone();
        data.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes()
    };
    let mut block = round(&[salt, &1u32.to_be_bytes()]);
    let mut sum = block;
    for _ in 1..iterations {
        block = round(&[&block]);
        sum.iter_mut().zip(&block).for_each(|(sum, byte)| *sum ^= byte);
    }
    sum.to_vec()
}

#[test]
fn the_exchange_of_rfc_7677_is_reproduced() {
    let mut client = ScramClient::new("pencil", "n,,", b"");
    client.nonce = "rOprNGfwEbeRWgbNEkqO".to_owned();
    client.first_bare = format!("n=user,r={}", client.nonce);
    let last = client.last("r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
    assert!(
        last.ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="),
        "{last}"
    );
    assert!(client.accepts("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
}
