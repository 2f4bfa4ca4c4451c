#include "connection.h"

#include "values.h"

#include <QDBusError>
#include <QDBusMessage>
#include <QDBusPendingCallWatcher>

QDBusConnection BusType::bus(Type type)
{
    return type == System ? QDBusConnection::systemBus() : QDBusConnection::sessionBus();
}

DBusPendingReply::DBusPendingReply(const QDBusPendingCall &call, QObject *parent)
    : QObject(parent)
    , m_call(call)
{
    // Tells later even of a call that has failed at once, as where there is no bus: nobody listens yet.
    const auto watcher = new QDBusPendingCallWatcher(call, this);
    connect(watcher, &QDBusPendingCallWatcher::finished, this, &DBusPendingReply::finished);
}

bool DBusPendingReply::isError() const
{
    return m_call.isError();
}

QVariantMap DBusPendingReply::error() const
{
    const QDBusError error = m_call.error();
    return {{QStringLiteral("name"), error.name()}, {QStringLiteral("message"), error.message()}};
}

QVariantList DBusPendingReply::values() const
{
    QVariantList values;
    const QVariantList arguments = m_call.reply().arguments();
    for (const QVariant &value : arguments)
        values.append(plain(value));
    return values;
}

DBusConnection::DBusConnection(BusType::Type type, QObject *parent)
    : QObject(parent)
    , m_bus(BusType::bus(type))
{
}

DBusPendingReply *DBusConnection::asyncCall(const QVariantMap &message)
{
    const auto text = [&message](const char *key) {
        return message.value(QLatin1String(key)).toString();
    };
    const auto arguments = typed(text("signature"), message.value(QStringLiteral("arguments")).toList());
    if (!arguments) {
        const QDBusError error(QDBusError::InvalidSignature, QStringLiteral("not known here: ") + text("signature"));
        return new DBusPendingReply(QDBusPendingCall::fromError(error), this);
    }
    if (!m_bus.isConnected()) {
        // QtDBus would never answer.
        const QDBusError error(QDBusError::Disconnected, QStringLiteral("there is no such bus"));
        return new DBusPendingReply(QDBusPendingCall::fromError(error), this);
    }
    QDBusMessage call = QDBusMessage::createMethodCall(text("service"), text("path"), text("iface"), text("member"));
    call.setArguments(*arguments);
    return new DBusPendingReply(m_bus.asyncCall(call), this);
}
