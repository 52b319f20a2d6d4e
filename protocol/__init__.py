"""What crosses the bus: ids, subjects, messages, the instance specification and the bus itself.

Law: both sides import from here and nothing here imports either side. Only `protocol.nats_bus` knows NATS.
"""
