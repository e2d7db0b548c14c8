//! The codec of all services. It is prost's codec, except that it rejects messages with undefined enum values
//! ([`crate::enums`]).

use std::marker::PhantomData;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::enums::Known;

/// Encodes `T`, and decodes `U` if all its enum values are defined.
#[derive(Clone, Debug)]
pub struct CheckedCodec<T, U> {
    types: PhantomData<(T, U)>,
}

impl<T, U> Default for CheckedCodec<T, U> {
    fn default() -> Self {
        Self { types: PhantomData }
    }
}

impl<T, U> Codec for CheckedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Known + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CheckedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CheckedDecoder { prost: ProstDecoder::default() }
    }
}

/// Decodes messages, and rejects those with undefined enum values.
#[derive(Clone, Debug)]
pub struct CheckedDecoder<U> {
    prost: ProstDecoder<U>,
}

impl<U: Message + Default + Known> Decoder for CheckedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = self.prost.decode(buffer)?;
        if let Some(message) = &message {
            message.check().map_err(|unknown| Status::invalid_argument(unknown.to_string()))?;
        }
        Ok(message)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.prost.buffer_settings()
    }
}
