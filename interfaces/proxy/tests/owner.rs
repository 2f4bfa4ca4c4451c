//! Proxies take signals from the owner of the service's name, and from nobody else.

use std::collections::HashMap;

use futures_util::StreamExt;
use ipc_harness::{Bus, NAME, Service, connect, on_each_bus, patience, watchdog};
use ipc_proxy::{EndpointProxy, ManagerProxy};

on_each_bus!(async a_forged_signal_is_dropped);

async fn a_forged_signal_is_dropped(bus: Bus) {
    let _service = Service::on(&bus);
    watchdog(patience(), async {
        let (client, forger) = (connect(&bus).await, connect(&bus).await);
        let manager = ManagerProxy::new(&client).await.expect("a proxy");
        let path = manager.create("pipe:", HashMap::new()).await.expect("a pipe");
        let endpoint = EndpointProxy::new(&client, path.clone()).await.expect("a proxy");
        let mut closed = endpoint.receive_closed().await.expect("a subscription");
        let interface = format!("{NAME}.Endpoint");
        // To this client alone, so that it is surely delivered; before the true one.
        let name = client.unique_name().expect("a connection to a bus").clone();
        forger.emit_signal(Some(name), &path, interface, "Closed", &"forged").await.expect("sent");
        // The bus has routed it once it answers the forger.
        forger
            .call_method(
                Some("org.freedesktop.DBus"),
                "/org/freedesktop/DBus",
                Some("org.freedesktop.DBus"),
                "GetId",
                &(),
            )
            .await
            .expect("an answer");
        endpoint.close().await.expect("closed");
        let signal = closed.next().await.expect("a signal");
        assert_eq!(signal.args().expect("its arguments").reason, "closed");
    })
    .await;
}
