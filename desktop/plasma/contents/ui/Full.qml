// What is shown when the widget is open: in a popup, or on the desktop.

import QtQuick
import QtQuick.Layouts
import org.kde.kirigami as Kirigami
import org.kde.coreaddons as KCoreAddons
import org.kde.plasma.components as PlasmaComponents
import org.kde.plasma.extras as PlasmaExtras
import org.kde.plasma.plasmoid
import "text.js" as Words

PlasmaExtras.Representation {
    id: full

    required property Service service
    required property Network network
    required property Folders folders
    required property Processes processes
    required property Objects objects
    required property Feed feed
    required property string home

    readonly property bool present: service.presence === "present"
    readonly property var configuration: Plasmoid.configuration
    /** The endpoints that are there for the widget itself. */
    readonly property var own: [...folders.objects, ...processes.objects]

    contentItem: Item {
        PlasmaExtras.PlaceholderMessage {
            anchors.centerIn: parent
            width: parent.width - Kirigami.Units.gridUnit * 4
            visible: !full.present
            iconName: "org.example.IPC"
            text: {
                switch (full.service.presence) {
                case "absent":
                    return i18n("The IPC service is not installed");
                case "stopped":
                    return i18n("The IPC service does not run");
                default:
                    return i18n("Waiting for the IPC service");
                }
            }
            explanation: full.service.presence === "absent"
                ? i18n("Install the package “ipcd”, or run “ipcd --bus session” in a terminal.") : full.service.failure
            helpfulAction: Kirigami.Action {
                icon.name: "media-playback-start"
                text: i18n("Start the Service")
                enabled: full.service.presence === "stopped"
                onTriggered: full.service.start()
            }
        }

        PlasmaComponents.ScrollView {
            id: scroll
            anchors.fill: parent
            visible: full.present
            contentWidth: availableWidth
            PlasmaComponents.ScrollBar.horizontal.policy: PlasmaComponents.ScrollBar.AlwaysOff

            ColumnLayout {
                width: scroll.availableWidth
                spacing: Kirigami.Units.smallSpacing

                Section {
                    title: i18n("Network")
                    most: 8
                    items: full.configuration.showNetwork
                        ? full.network.links.filter(link => full.configuration.showLoopback || !link.loopback) : []
                    delegate: Line {
                        required property var modelData
                        icon: Words.linkIcon(modelData)
                        title: modelData.name
                        subtitle: modelData.addresses.join("\n")
                        end: Words.linkState(modelData.state)
                        Layout.fillWidth: true
                    }
                }
                Section {
                    title: i18n("Recent Events")
                    most: 15
                    items: full.configuration.showEvents ? full.feed.lines.slice(0, full.configuration.eventsShown) : []
                    delegate: Line {
                        required property var modelData
                        icon: modelData.icon
                        title: modelData.count > 1
                            ? i18nc("event (how often)", "%1 (×%2)", modelData.text, modelData.count) : modelData.text
                        end: Qt.formatTime(new Date(modelData.time), "HH:mm:ss")
                        Layout.fillWidth: true
                    }
                }
                Section {
                    title: i18n("Relays")
                    most: 4
                    items: full.configuration.showObjects ? full.objects.relays : []
                    delegate: Line {
                        id: relay
                        required property var modelData
                        readonly property bool paused: modelData.state === "paused"
                        icon: "media-playlist-repeat"
                        title: modelData.source
                        subtitle: `→ ${modelData.sink}`
                        end: paused ? i18n("paused") : i18n("%1/s", KCoreAddons.Format.formatByteSize(modelData.rate))
                        values: modelData.history
                        Layout.fillWidth: true
                        actions: [
                            Kirigami.Action {
                                icon.name: relay.paused ? "media-playback-start" : "media-playback-pause"
                                text: relay.paused ? i18n("Resume") : i18n("Pause")
                                onTriggered: full.objects.pause(relay.modelData)
                            },
                            Kirigami.Action {
                                icon.name: "media-playback-stop"
                                text: i18n("Stop")
                                onTriggered: full.objects.halt(relay.modelData)
                            }
                        ]
                    }
                }
                Section {
                    title: i18n("Endpoints")
                    most: 5
                    items: full.configuration.showObjects
                        ? full.objects.endpoints.filter(endpoint => !full.own.includes(endpoint.path)) : []
                    delegate: Line {
                        required property var modelData
                        icon: "network-connect"
                        title: modelData.address
                        end: {
                            const {depth, bytes} = modelData;
                            if (depth === null)
                                return "";
                            return bytes ? KCoreAddons.Format.formatByteSize(depth)
                                : i18np("%1 message", "%1 messages", depth);
                        }
                        values: modelData.depth === null ? null : modelData.history
                        Layout.fillWidth: true
                    }
                }
                Section {
                    title: i18n("Watch This Folder")
                    most: 20
                    items: full.folders.watches
                    visible: true
                    delegate: Line {
                        id: folder
                        required property var modelData
                        icon: modelData.error ? "dialog-warning" : "folder"
                        title: Words.shortPath(modelData.path, full.home)
                        subtitle: modelData.error
                        Layout.fillWidth: true
                        actions: Kirigami.Action {
                            icon.name: "edit-delete-remove"
                            text: i18n("Do not watch any more")
                            onTriggered: full.watchFolders(
                                full.configuration.folders.filter(it => it !== folder.modelData.path))
                        }
                    }
                }
                Entry {
                    placeholder: i18n("Path of a folder")
                    icon: "list-add"
                    onEntered: text => {
                        const path = Words.typedPath(text, full.home);
                        if (path) {
                            full.watchFolders([...full.configuration.folders.filter(it => it && it !== path), path]);
                            clear();
                        } else {
                            trouble = i18n("The path of a folder begins with / or ~");
                        }
                    }
                }
                Section {
                    title: i18n("Tell When a Process Ends")
                    most: 20
                    items: full.processes.watched
                    visible: true
                    delegate: Line {
                        id: process
                        required property var modelData
                        icon: "application-x-executable"
                        title: `${modelData.name} (${modelData.pid})`
                        Layout.fillWidth: true
                        actions: Kirigami.Action {
                            icon.name: "edit-delete-remove"
                            text: i18n("Do not tell")
                            onTriggered: full.processes.forget(process.modelData)
                        }
                    }
                }
                Entry {
                    placeholder: i18n("Number or name of a process")
                    icon: "list-add"
                    onEntered: text => {
                        full.processes.watch(text, why => trouble = why);
                        clear();
                    }
                }
            }
        }
    }

    function watchFolders(paths) {
        Plasmoid.configuration.folders = paths;
        // Plasma 5.27 has done so by itself.
        if (Plasmoid.configuration.writeConfig)
            Plasmoid.configuration.writeConfig();
    }
}
