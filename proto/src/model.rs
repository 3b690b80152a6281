//! Mirror types of the messages a client receives, validated on receipt.
