"""Takes one version of the policy from the learner to every generator.

One typed `WeightManifest` travels by RPC; it fixes the order, the shapes and the buckets, so the transfer itself is a plain
sequence of buckets from rank 0. They travel by the best medium that it shares with every engine: the memory of a GPU, that of the
host, or the network. Both ends return a checksum of the bytes, for the driver to compare.

    learner rank 0   Publisher(rendezvous[0], timeout).publish(manifest, tensors)   -> checksum
    generator k      Subscriber(rendezvous[k], timeout).receive(manifest)           -> tensors, then .checksum

Every wait is bounded; running out of time is a `WeightSyncError` that names the member and the phase. After an error a channel is
closed for good: members meet again under a new `Rendezvous` with the next epoch.

protocol.py    what both ends agree on: members, tensors, buckets, the manifest, the error
checksum.py    64 bits that are equal on CPU and GPU, and their comparison
network.py     the interface and the port of a group and its store
channel.py     one member's end of the process group: meet, broadcast, wait, say and hear
media.py       outlets and inlets: over the network, and through the host's memory
host_memory.py a segment of this host's memory that has no name
cuda_ipc.py    two buckets of the learner's GPU, lent to the engines on it
choice.py      which medium a transfer takes
publisher.py   the sending end, on learner rank 0
subscriber.py  the receiving end, in a generator
"""
