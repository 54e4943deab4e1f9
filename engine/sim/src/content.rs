//! What messages hold: bytes that follow from their number, some of them written by somebody who knows the format.

use ringpost_spool::{RecordId, forged_batch};

use crate::random::Random;

/// What a message or a chunk is filled with.
#[derive(Clone, Copy, Debug)]
pub enum Filling {
    /// Noise.
    Noise,
    /// Batches forged with a guess of the generation, one after the other, each settling a victim.
    Forged {
        /// The guess: generation and number.
        guess: u64,
        /// The boot claimed.
        boot: u64,
        /// The sequence claimed.
        sequence: u64,
        /// The message that it would settle.
        victim: RecordId,
    },
}

/// The payload number `sequence`, piece `index`, of `bytes` bytes.
pub fn payload(sequence: u64, index: u32, bytes: usize, filling: Filling, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&sequence.to_le_bytes());
    into.extend_from_slice(&u64::from(index).to_le_bytes());
    match filling {
        Filling::Noise => {
            let mut random = Random::new(sequence << 8 | u64::from(index));
            while into.len() < bytes {
                into.extend_from_slice(&random.draw().to_le_bytes());
            }
        }
        Filling::Forged { guess, boot, sequence, victim } => {
            let forged = forged_batch(guess, guess, boot, sequence, victim);
            while into.len() < bytes {
                into.extend_from_slice(&forged[..112]);
            }
        }
    }
    into.truncate(bytes);
}
