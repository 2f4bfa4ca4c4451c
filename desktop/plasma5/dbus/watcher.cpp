#include "watcher.h"

#include <QDBusMessage>
#include <QDBusPendingCallWatcher>
#include <QDBusPendingReply>
#include <QDBusServiceWatcher>

DBusServiceWatcher::DBusServiceWatcher(QObject *parent)
    : QObject(parent)
{
    connect(this, &DBusServiceWatcher::watchedChanged, this, &DBusServiceWatcher::watch);
}

DBusServiceWatcher::~DBusServiceWatcher() = default;

bool DBusServiceWatcher::isRegistered() const
{
    return m_registered;
}

void DBusServiceWatcher::watch()
{
    if (m_name.isEmpty())
        return;
    QDBusConnection bus = BusType::bus(m_type);
    m_watcher = std::make_unique<QDBusServiceWatcher>(m_name, bus, QDBusServiceWatcher::WatchForOwnerChange);
    connect(m_watcher.get(), &QDBusServiceWatcher::serviceOwnerChanged, this,
            [this](const QString &, const QString &, const QString &owner) {
                setRegistered(!owner.isEmpty());
            });
    QDBusMessage call = QDBusMessage::createMethodCall(
        QStringLiteral("org.freedesktop.DBus"), QStringLiteral("/org/freedesktop/DBus"),
        QStringLiteral("org.freedesktop.DBus"), QStringLiteral("NameHasOwner"));
    call.setArguments({m_name});
    // The answer goes with the watcher, when it is another bus or name that is watched.
    const auto asked = new QDBusPendingCallWatcher(bus.asyncCall(call), m_watcher.get());
    connect(asked, &QDBusPendingCallWatcher::finished, this, [this, asked] {
        setRegistered(QDBusPendingReply<bool>(*asked).value());
        asked->deleteLater();
    });
}

void DBusServiceWatcher::setRegistered(bool registered)
{
    if (registered == m_registered)
        return;
    m_registered = registered;
    Q_EMIT registeredChanged();
}
