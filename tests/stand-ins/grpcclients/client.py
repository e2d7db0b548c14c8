# A gRPC client of the C core: client.py TARGET METHOD MESSAGE [AUTHORITY]. Messages are hexadecimal.
import sys

import grpc

target, method, message = sys.argv[1:4]
options = [("grpc.default_authority", authority) for authority in sys.argv[4:]]
call = grpc.insecure_channel(target, options=options).stream_stream(method)
print(next(call(iter([bytes.fromhex(message)]), timeout=60)).hex())
