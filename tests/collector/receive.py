"""A collector of OTLP metrics that is not ours: OpenTelemetry's own messages for Python, and gRPC's own server.

    receive.py HTTP_PORT GRPC_PORT      0 for any

Prints its ports. Then, for each line on stdin, prints what it was told last, as JSON: the number of requests so far, and the
series as [resource, metric, attributes, value], where a histogram's value is [count, sum].
"""

import json
import sys
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as messages
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as service

lock = threading.Lock()
series = {}
requests = {"http": 0, "grpc": 0}


def attributes(pairs):
    """Names and values, as text."""
    return {pair.key: str(getattr(pair.value, pair.value.WhichOneof("value"))) for pair in pairs}


def take(request, way):
    """Keeps the last value of each series."""
    with lock:
        requests[way] += 1
        for resource in request.resource_metrics:
            of = attributes(resource.resource.attributes)
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    own = attributes(point.attributes)
                    value = [point.count, point.sum] if kind == "histogram" else getattr(point, point.WhichOneof("value"))
                    key = json.dumps([of, metric.name, own], sort_keys=True)
                    series[key] = [of, metric.name, own, value]


class Http(BaseHTTPRequestHandler):
    """OTLP over HTTP."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        right = self.path == "/v1/metrics" and self.headers["Content-Type"] == "application/x-protobuf"
        if right:
            take(messages.ExportMetricsServiceRequest.FromString(body), "http")
        answer = messages.ExportMetricsServiceResponse().SerializeToString()
        self.send_response(200 if right else 404)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Grpc(service.MetricsServiceServicer):
    """OTLP by gRPC."""

    def Export(self, request, context):
        take(request, "grpc")
        return messages.ExportMetricsServiceResponse()


http = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Http)
http.daemon_threads = True
threading.Thread(target=http.serve_forever, daemon=True).start()
server = grpc.server(futures.ThreadPoolExecutor(2))
service.add_MetricsServiceServicer_to_server(Grpc(), server)
port = server.add_insecure_port(f"127.0.0.1:{sys.argv[2]}")
server.start()
print(json.dumps({"http": http.server_address[1], "grpc": port}), flush=True)
for _ in sys.stdin:
    with lock:
        print(json.dumps({"requests": requests, "series": list(series.values())}), flush=True)
