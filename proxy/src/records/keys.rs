//! `Keys`: seals or opens single records of one direction. Knows nothing of what is in them. No I/O.

use std::io::IoSlice;

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey,
};
use rustls::{ConnectionTrafficSecrets, ContentType, Error, InvalidMessage, PeerMisbehaved, crypto::cipher::AeadKey};
use zeroize::Zeroizing;

use super::RecordError;

pub(super) const HEADER: usize = 5;
const TAG: usize = 16;
const LONGEST_KEY: usize = 32;
/// The content type, which stands behind the content, and the tag.
const TAIL: usize = 1 + TAG;
/// What a record is longer than its content.
pub(super) const OVERHEAD: usize = HEADER + TAIL;
/// By RFC 8446; ours are smaller.
pub(super) const LARGEST_CONTENT: usize = 1 << 14;
/// Content and padding share one limit, and all our ciphers add 16 bytes: that is well below the 2^14 + 256 that other
/// ciphers might need.
pub(super) const LARGEST_RECORD: usize = LARGEST_CONTENT + OVERHEAD;

/// The length of the record at the front of `bytes`, `None` while that is unknown or more than is there. What cannot be
/// an encrypted record is refused as soon as its header is there.
pub(super) fn whole_record(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some(&[kind, major, minor, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    match ContentType::from(kind) {
        ContentType::ApplicationData => {}
        // Tolerated only until the peer's Finished, which has come before there are keys of ours.
        ContentType::ChangeCipherSpec => {
            return Err(Error::from(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec).into());
        }
        got_type => {
            let expect_types = vec![ContentType::ApplicationData];
            return Err(Error::InappropriateMessage { expect_types, got_type }.into());
        }
    }
    if (major, minor) != (3, 3) {
        return Err(Error::from(InvalidMessage::UnknownProtocolVersion).into());
    }
    let len = HEADER + usize::from(u16::from_be_bytes([high, low]));
    if len > LARGEST_RECORD {
        return Err(Error::PeerSentOversizedRecord.into());
    }
    Ok((len <= bytes.len()).then_some(len))
}

/// What opening a record takes room for.
pub(super) fn room(record: usize) -> usize {
    record.saturating_sub(HEADER + TAG)
}

/// One direction's key, and how many records it was used for.
pub(super) struct Keys {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    seq: u64,
}

impl Keys {
    /// From what rustls gives up: the next sequence number and the secrets.
    pub(super) fn new((seq, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, RecordError> {
        use ConnectionTrafficSecrets::*;
        let (algorithm, key, iv): (&'static Algorithm, AeadKey, _) = match secrets {
            Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            Chacha20Poly1305 { key, iv } => (&CHACHA20_POLY1305, key, iv),
            _ => return Err(Error::General("a cipher suite that is not known here".to_owned()).into()),
        };
        let iv = iv.as_ref().try_into().map_err(|_| unfit())?;
        Self::of(algorithm, key.as_ref(), iv, seq)
    }

    /// Those that follow, of the same cipher: `expand` fills what it is given with what the next secret has for a label.
    pub(super) fn next(&self, mut expand: impl FnMut(&[u8], &mut [u8])) -> Result<Self, RecordError> {
        let algorithm = self.aead.algorithm();
        let (mut key, mut iv) = (Zeroizing::new([0; LONGEST_KEY]), [0; NONCE_LEN]);
        let key = &mut key[..algorithm.key_len()];
        expand(b"key", key);
        expand(b"iv", &mut iv);
        Self::of(algorithm, key, iv, 0)
    }

    fn of(algorithm: &'static Algorithm, key: &[u8], iv: [u8; NONCE_LEN], seq: u64) -> Result<Self, RecordError> {
        let key = UnboundKey::new(algorithm, key).map_err(|_| unfit())?;
        Ok(Self { aead: LessSafeKey::new(key), iv, seq })
    }

    /// How many records these keys were used for.
    pub(super) fn used(&self) -> u64 {
        self.seq
    }

    #[cfg(test)]
    pub(super) fn pretend_used(&mut self, records: u64) {
        self.seq = records;
    }

    /// Writes a record of the next `len` bytes of `content` to the front of `out`, which must have room for it.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        content: &mut Gather<'_, '_>,
        len: usize,
        out: &mut [u8],
    ) -> Result<usize, RecordError> {
        let nonce = self.next_nonce()?;
        let (header, body) = out[..len + OVERHEAD].split_at_mut(HEADER);
        header.copy_from_slice(&record_header(len + TAIL));
        let (sealed, tail) = body.split_at_mut(len);
        let (aad, kind) = (Aad::from(&*header), [u8::from(kind)]);
        let done = match content.piece(len) {
            Some(plain) => self.aead.seal_out_of_place_scatter(nonce, aad, plain, sealed, &kind, tail),
            None => {
                content.copy_to(sealed);
                self.aead.seal_in_place_scatter(nonce, aad, sealed, &kind, tail)
            }
        };
        done.map_err(|_| Error::EncryptError)?;
        Ok(len + OVERHEAD)
    }

    /// Opens a whole record to the front of `out`, which must have [`room`] for it: kind and length of its content.
    /// After an error, what `out` holds must not be used.
    pub(super) fn open(&mut self, record: &[u8], out: &mut [u8]) -> Result<(ContentType, usize), RecordError> {
        let (header, body) = record.split_at(HEADER);
        let (sealed, tag) = body.split_last_chunk::<TAG>().ok_or(Error::DecryptError)?;
        let out = &mut out[..sealed.len()];
        let nonce = self.next_nonce()?;
        self.aead.open_separate_gather(nonce, Aad::from(header), sealed, tag, out).map_err(|_| Error::DecryptError)?;
        let kind = out.iter().rposition(|byte| *byte != 0);
        let len = kind.ok_or(Error::from(PeerMisbehaved::IllegalTlsInnerPlaintext))?;
        Ok((ContentType::from(out[len]), len))
    }

    /// No nonce is ever used twice: the number rises before it is used, and never wraps.
    fn next_nonce(&mut self) -> Result<Nonce, RecordError> {
        let seq = self.seq;
        self.seq = seq.checked_add(1).ok_or(RecordError::Exhausted)?;
        let mut nonce = self.iv;
        for (byte, of_seq) in nonce[NONCE_LEN - size_of::<u64>()..].iter_mut().zip(seq.to_be_bytes()) {
            *byte ^= of_seq;
        }
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

fn unfit() -> Error {
    Error::General("the secrets do not fit the cipher suite".to_owned())
}

fn record_header(body: usize) -> [u8; HEADER] {
    let [high, low] = u16::try_from(body).expect("a record is no longer than 2^14 + 17").to_be_bytes();
    [u8::from(ContentType::ApplicationData), 3, 3, high, low]
}

/// Bytes in several slices, taken from the front.
pub(super) struct Gather<'a, 'b> {
    first: &'a [u8],
    rest: &'a [IoSlice<'b>],
    left: usize,
}

impl<'a, 'b> Gather<'a, 'b> {
    pub(super) fn new(slices: &'a [IoSlice<'b>]) -> Self {
        Self { first: &[], rest: slices, left: slices.iter().map(|slice| slice.len()).sum() }
    }

    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self { first: bytes, rest: &[], left: bytes.len() }
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// The next `len` bytes, where they lie in one piece.
    fn piece(&mut self, len: usize) -> Option<&'a [u8]> {
        self.skip_empty();
        let (piece, first) = self.first.split_at_checked(len)?;
        (self.first, self.left) = (first, self.left - len);
        Some(piece)
    }

    /// Fills `out`, for which there must be enough.
    fn copy_to(&mut self, mut out: &mut [u8]) {
        assert!(out.len() <= self.left, "a record is sealed of bytes that are there");
        while !out.is_empty() {
            self.skip_empty();
            let len = out.len().min(self.first.len());
            let (filled, empty) = out.split_at_mut(len);
            filled.copy_from_slice(self.piece(len).expect("no longer than the slice"));
            out = empty;
        }
    }

    fn skip_empty(&mut self) {
        while self.first.is_empty()
            && let Some((next, rest)) = self.rest.split_first()
        {
            (self.first, self.rest) = (next, rest);
        }
    }
}
