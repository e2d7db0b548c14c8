// A gRPC client of Node: client.js TARGET METHOD MESSAGE. Messages are hexadecimal.
const grpc = require("@grpc/grpc-js");

const [target, method, message] = process.argv.slice(2);
const same = (bytes) => bytes;
const client = new grpc.Client(target, grpc.credentials.createInsecure());
const call = client.makeBidiStreamRequest(method, same, same, { deadline: Date.now() + 60000 });
call.on("data", (answer) => console.log(answer.toString("hex")));
call.on("error", (error) => {
    console.error(error.message);
    process.exitCode = 1;
});
call.on("status", () => client.close());
call.write(Buffer.from(message, "hex"));
call.end();
