//! A peer's data keys: up to three to receive with, one of all to send with.

use crate::Nanos;
use crate::aead::OpenError;
use crate::cipher::MATERIAL_LEN;
use crate::format::{self, Format};
use crate::header::Header;
use crate::packet::{LocalPool, Packet};

/// Why a datagram was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NoKey,
    Malformed,
    Replayed,
    NotAuthentic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    Unknown,
    Exists,
    KeyId,
}

/// Both directions' keys of one negotiation.
pub struct KeyPair {
    handle: u64,
    pub key_id: u8,
    pub keys: format::Keys,
    /// Cleared when another pair has taken the key id and this one only goes on sending.
    receives: bool,
    reported: bool,
}

/// The pairs, oldest first.
#[derive(Default)]
pub struct Keys {
    pairs: Vec<KeyPair>,
    sending: Option<u64>,
}

impl Keys {
    pub fn insert(
        &mut self,
        handle: u64,
        key_id: u8,
        format: Format,
        encrypt: &[u8; MATERIAL_LEN],
        decrypt: &[u8; MATERIAL_LEN],
    ) -> Result<(), KeyError> {
        if key_id > MAX_KEY_ID {
            return Err(KeyError::KeyId);
        }
        if self.pairs.iter().any(|pair| pair.handle == handle) {
            return Err(KeyError::Exists);
        }
        self.pairs.iter_mut().filter(|pair| pair.key_id == key_id).for_each(|pair| pair.receives = false);
        self.drop_useless();
        if self.pairs.iter().filter(|pair| pair.receives).count() == MAX_RECEIVING
            && let Some(oldest) = self.pairs.iter().position(|pair| Some(pair.handle) != self.sending)
        {
            self.pairs.remove(oldest);
        }
        self.pairs.push(KeyPair {
            handle,
            key_id,
            keys: format.keys(encrypt, decrypt),
            receives: true,
            reported: false,
        });
        Ok(())
    }

    pub fn remove(&mut self, handle: u64) {
        self.pairs.retain(|pair| pair.handle != handle);
        self.sending = self.sending.filter(|&sending| sending != handle);
    }

    pub fn swap(&mut self, handle: u64) -> Result<(), KeyError> {
        if !self.pairs.iter().any(|pair| pair.handle == handle) {
            return Err(KeyError::Unknown);
        }
        self.sending = Some(handle);
        self.drop_useless();
        Ok(())
    }

    /// The pair to send with.
    pub fn sending(&mut self) -> Option<&mut KeyPair> {
        let sending = self.sending?;
        self.pairs.iter_mut().find(|pair| pair.handle == sending)
    }

    /// The inner packet of a datagram, and whether it is the newest of its key.
    pub fn open(
        &mut self,
        header: &Header,
        datagram: &[u8],
        now: Nanos,
        pool: &mut LocalPool,
    ) -> Result<(Packet, bool), Refusal> {
        let key_id = header.key_id();
        let pair = self.pairs.iter_mut().find(|pair| pair.key_id == key_id && pair.receives);
        let keys = &mut pair.ok_or(Refusal::NoKey)?.keys;
        keys.open(header, datagram, now, pool).map_err(|error| match error {
            OpenError::NoKey => Refusal::NoKey,
            OpenError::Malformed => Refusal::Malformed,
            OpenError::Replayed => Refusal::Replayed,
            OpenError::NotAuthentic => Refusal::NotAuthentic,
        })
    }

    /// The handle of the sending pair, once, when either half of it is nearly used up.
    pub fn newly_worn(&mut self) -> Option<u64> {
        let pair = self.sending()?;
        if pair.reported || !pair.keys.is_worn() {
            return None;
        }
        pair.reported = true;
        Some(pair.handle)
    }

    fn drop_useless(&mut self) {
        let sending = self.sending;
        self.pairs.retain(|pair| pair.receives || Some(pair.handle) == sending);
    }
}

const MAX_KEY_ID: u8 = 7;
const MAX_RECEIVING: usize = 3;
