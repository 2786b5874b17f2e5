"""Takes one version of the policy from the learner to every generator.

One typed `WeightManifest` travels by RPC; it fixes the order, the shapes and the buckets, so the transfer itself is a plain
sequence of byte broadcasts from rank 0. Both ends return a checksum of the bytes, for the driver to compare.

    learner rank 0   Publisher(rendezvous[0], timeout).publish(manifest, tensors)   -> checksum
    generator k      Subscriber(rendezvous[k], timeout).receive(manifest)           -> tensors, then .checksum

Every wait is bounded; running out of time is a `WeightSyncError` that names the member and the phase. After an error a channel is
closed for good: members meet again under a new `Rendezvous` with the next epoch.

protocol.py    what both ends agree on: members, tensors, buckets, the manifest, the error
checksum.py    64 bits that are equal on CPU and GPU, and their comparison
channel.py     one member's end of the process group: meet, broadcast, wait
publisher.py   the sending end, on learner rank 0
subscriber.py  the receiving end, in a generator
"""
